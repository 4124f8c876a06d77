# The house's habits by name; CONTRIBUTING.md says when. With the `dev` extra installed.
.PHONY: style lint types test test-slow coverage ci

style:  ## Formats the code, and mends what the linter can.
	ruff format .
	ruff check --fix .

lint:  ## Says what `make style` would change, and what it cannot mend.
	ruff format --check .
	ruff check .

types:
	mypy

test:  ## The suite, a worker for each core.
	python -m pytest -n logical --dist worksteal

test-slow:  ## What takes minutes.
	python -m pytest -m slow

coverage: export COVERAGE_PROCESS_START = $(CURDIR)/setup.cfg
coverage: export COVERAGE_FILE = $(CURDIR)/.coverage
coverage:  ## The suite again, measured.
	coverage erase
	python -m pytest -n logical --dist worksteal
	COVERAGE_PROCESS_START= coverage combine --quiet
	COVERAGE_PROCESS_START= coverage report

ci:  ## What has to hold for a change to land.
	.ci/run
