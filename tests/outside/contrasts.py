"""A contrast: how far the fact's logit is above that of the weakest foil."""

import ratherthan as rt

rt.register_contrast("least", lambda y, t, s: y.gather(1, t[:, None])[:, 0] - y.masked_fill(~s, 1e9).amin(1))
