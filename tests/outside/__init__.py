"""Things added from outside, with imports from `ratherthan` alone; the property tests run over them."""
