from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'ratherthan[page]'")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

REFUSED = "400 (Bad Request)"  # a browser notes what the page itself says beside the question
Open = Callable[..., Any]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("needs a chromium on the path")
    with playwright.sync_playwright() as run:
        opened = run.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def look(browser: Any) -> Iterator[Open]:
    """Open a saved page; at the end it must have made no request and met no error."""
    contexts, pages, errors, requests = [], list[str](), list[str](), list[str]()

    def opened(address: Path | str, width: int = 1280, scheme: str = "light", axe: bool = False) -> Any:
        # the policy of a page forbids the checker's script, too
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=axe)
        page = context.new_page()
        page.on(
            "console",
            lambda said: errors.append(said.text) if said.type == "error" and REFUSED not in said.text else None,
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda made: requests.append(made.url) if not made.url.startswith("data:") else None)
        contexts.append(context)
        pages.append(address.as_uri() if isinstance(address, Path) else address)
        page.goto(pages[-1])
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []
    own = tuple(page if page.startswith("file:") else f"{page}ask" for page in pages)  # and the jobs it brings
    assert [made for made in requests if made.partition("#")[0] not in (*pages, *own) and "/jobs/" not in made] == []
