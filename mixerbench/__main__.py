"""``python -m mixerbench``, and ``torchrun ... -m mixerbench``."""

from mixerbench.cli import main

if __name__ == "__main__":
    main()
