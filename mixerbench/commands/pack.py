"""``mixerbench pack``: an image folder becomes a few large files that are read faster."""

import argparse

from mixerbench.commands import Command


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verify", action="store_true", help="compare checksums, pack nothing")


def _run(options: argparse.Namespace) -> None:
    from mixerbench.commands._packing import pack_folder, verify_folder

    print((verify_folder if options.verify else pack_folder)(options.settings))


COMMAND = Command(
    summary="an image folder into a few large files that are read faster",
    description="""\
Pack an image folder into a few large files, with checksums, that are read faster.""",
    help="""\
data=... and data.root=... are those of 'mixerbench train'. An interrupted packing goes on when the
same command is given again. Validation images always keep their files, byte for byte.

  out=FOLDER        a new one, or an unfinished one; it becomes the data.root= of training
  short_side=256    resize larger training images to it; null, the default, resizes none
  format=jpeg       what resized images become, or raw: all training images as bare pixels
  quality=90        of those JPEGs
  jobs=N            processes (default: one per core)
  shard_images=N    in one file (default: about 256 MiB of ImageNet)

examples:
  mixerbench pack data=imagenet data.root=/data/imagenet out=/fast/imagenet
      files as they are: the same results and the same leaderboard
  mixerbench pack data=imagenet data.root=/data/imagenet out=/fast/imagenet_256 short_side=256
      a third of the size; another leaderboard, which names what was done to the pixels
  mixerbench pack data=folder data.root=/data/flowers out=/fast/flowers short_side=256 format=raw
      nothing to decode; large
  mixerbench pack --verify out=/fast/imagenet
      reads every byte and names damaged files
""",
    run=_run,
    add_flags=_add_flags,
    order=70,
)
