"""`python -m lionrock.cli` is `lionrock`: for supervisors and tests that name the interpreter."""

from lionrock.cli.main import main

if __name__ == "__main__":
    main()
