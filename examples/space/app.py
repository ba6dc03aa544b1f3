"""A photograph, and why the network says what it says, rather than something else: a page for a hosted Space."""

from __future__ import annotations

import gradio as gr
from PIL import Image

import ratherthan as rt

MODEL = rt.load("zoo:efficientnet_lite0")


def ask(photo: Image.Image | None, foils: int, contrast: str) -> str:
    """The page of the answer, in a frame."""
    if photo is None:
        raise gr.Error("Choose a photograph first.")
    try:
        why = rt.explain(MODEL, photo, foil=f"top{int(foils)}", contrast=contrast, names=["your photograph"])
    except rt.RatherThanError as error:
        raise gr.Error(str(error)) from error
    return why.show(height=900)._repr_html_()


app = gr.Interface(
    ask,
    [
        gr.Image(type="pil", label="Photograph", value=rt.example("chelsea")),
        gr.Slider(1, 20, value=5, step=1, label="Foils: the classes that come next"),
        gr.Dropdown(rt.contrasts(), value="weighted", label="Contrast: how foils are weighed"),
    ],
    gr.HTML(label="Why?"),
    title="Why P, rather than Q?",
    analytics_enabled=False,
    flagging_mode="never",
)

if __name__ == "__main__":
    app.launch()
