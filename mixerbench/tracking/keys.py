"""The names of everything that is logged, once. The leaderboard knows runs by these only.

Units stand in the names; accuracies are percentages of the validation images.
"""

from typing import Final

SCHEMA_VERSION: Final = "1"
"""Raised when a key changes its meaning, so that old and new runs are never mixed."""

MEASUREMENT: Final = "measurement"
"""The kind of an MLflow run that measures a model and trains none."""

LEADERBOARD: Final = "leaderboard"
"""The kind of an MLflow run that holds the leaderboard's pages, and of its name."""


class Tag:
    """MLflow tags: what a run is, in words that can be filtered."""

    SCHEMA: Final = "mixerbench.schema"
    KIND: Final = "mixerbench.kind"  # MEASUREMENT, LEADERBOARD, or absent: a training run
    SESSION: Final = "mixerbench.session"  # of the measurements that were made in one run, in turn
    PROTOCOL: Final = "mixerbench.protocol"  # name: digits
    PROTOCOL_FINGERPRINT: Final = "mixerbench.protocol.fingerprint"  # 16 hex digits
    MODEL: Final = "mixerbench.model"  # label: attention_micro_conv
    MODEL_FINGERPRINT: Final = "mixerbench.model.fingerprint"  # 16 hex digits
    MIXER: Final = "mixerbench.mixer"
    SIZE: Final = "mixerbench.size"
    BACKBONE: Final = "mixerbench.backbone"
    STEM: Final = "mixerbench.stem"
    SEED: Final = "mixerbench.seed"
    SYNTHETIC: Final = "mixerbench.synthetic"  # "true": random images, accuracy means nothing
    HARDWARE: Final = "mixerbench.hardware"  # "2 x Intel Xeon ... · torch 2.15.0 · fp32"
    PROCESSES: Final = "mixerbench.processes"  # that trained it together, one per device
    GIT_COMMIT: Final = "mixerbench.git.commit"
    GIT_DIRTY: Final = "mixerbench.git.dirty"
    COMMAND: Final = "mixerbench.command"
    RUN_DIR: Final = "mixerbench.run_dir"
    UID: Final = "mixerbench.uid"  # of the run's folder: finds it in any store
    CONFIG_DRIFT: Final = "mixerbench.config_drift"  # run settings that a resume changed
    IMPORTED: Final = "mixerbench.imported"  # name of the bundle that the run came in
    # 16 hex digits: the pixels of all validation images as they were decoded; absent where one
    # could not be read. Runs of one board agree in it.
    VAL_PIXELS: Final = "mixerbench.data.val_pixels"


class Param:
    """Prefixes of MLflow parameters: the resolved configuration, flattened with dots."""

    MODEL: Final = "model."
    PROTOCOL: Final = "protocol."
    RUN: Final = "run."
    ENVIRONMENT: Final = "environment."


class Metric:
    """MLflow metrics. Curves carry the optimizer step; ``final/`` and ``measure/`` are single."""

    EPOCH: Final = "train/epoch"
    TRAIN_LOSS: Final = "train/loss"
    LEARNING_RATE: Final = "train/lr"
    TRAIN_IMAGES_PER_SECOND: Final = "train/images_per_second"
    # Model FLOPs utilization, in percent: what the speed needs of the devices' measured peak.
    MFU: Final = "train/mfu"
    TRAIN_SECONDS: Final = "train/seconds"  # of training until this step, as TRAINING_SECONDS

    VAL_TOP1: Final = "val/top1"
    VAL_TOP5: Final = "val/top5"
    VAL_LOSS: Final = "val/loss"
    EMA_TOP1: Final = "val_ema/top1"
    EMA_TOP5: Final = "val_ema/top5"
    EMA_LOSS: Final = "val_ema/loss"

    # The last epoch's weights. The board ranks by these: choosing the best epoch would be
    # choosing on the validation set.
    FINAL_TOP1: Final = "final/top1"
    FINAL_TOP5: Final = "final/top5"
    FINAL_LOSS: Final = "final/loss"
    FINAL_EMA_TOP1: Final = "final/ema_top1"
    FINAL_EMA_TOP5: Final = "final/ema_top5"
    TRAINING_SECONDS: Final = "final/training_seconds"  # validation and measuring not included
    IMAGES_SEEN: Final = "final/images_seen"
    VAL_IMAGES: Final = "final/val_images"  # of which the accuracies are shares
    BEST_TOP1: Final = "best/top1"
    CORRUPT_IMAGES: Final = "data/corrupt_images"  # of both splits
    UNREADABLE_VAL_IMAGES: Final = "data/unreadable_val_images"  # left out of the accuracy

    PARAMETERS: Final = "measure/parameters"
    GMACS: Final = "measure/gmacs"  # 1e9 multiply-adds of one image's forward pass
    IMAGES_PER_SECOND: Final = "measure/images_per_second"  # forward pass, evaluation mode
    LATENCY_MS: Final = "measure/latency_ms"  # forward pass of one image
    MEMORY_MIB: Final = "measure/memory_mib"  # peak of one training step, weights included
    JOULES_PER_IMAGE: Final = "measure/joules_per_image"  # forward pass; where hardware reports it
    MEASURE_BATCH_SIZE: Final = "measure/batch_size"
    LOWER_QUARTILE: Final = "_lower_quartile"  # behind the name of a median: of its repeats
    UPPER_QUARTILE: Final = "_upper_quartile"

    # Seconds since 1970, on the clock of whoever uploaded. A run that was offline comes to the
    # store long after its end: what is new in a store is found by this.
    UPLOADED_AT: Final = "upload/finished_at"

    SYSTEM: Final = "system/"


class Artifact:
    """Paths of MLflow artifacts."""

    CONFIG: Final = "config.yaml"
    ENVIRONMENT: Final = "environment.txt"
    PREDICTIONS: Final = "predictions.parquet"  # one row per validation image
    MODEL: Final = "model.safetensors"
    HARDEST: Final = "hardest_images.parquet"  # those least believed to be what they are
    EMA: Final = "ema.safetensors"
    PLUGINS: Final = "plugins"
    NON_FINITE: Final = "non_finite.json"  # the micro-batch whose loss was no number
    CORRUPT: Final = "corrupt_images.txt"  # files that could not be read, and why
    PAGE: Final = "leaderboard.html"  # of a run of the kind LEADERBOARD: a board in one file
    SITE: Final = "site"  # all its pages


class Prediction:
    """Columns of the per-image predictions, final weights, in the order of the data set.

    An image that could not be read has no row.
    """

    IMAGE: Final = "image"  # path or index, as the data set names it
    TARGET: Final = "target"
    TOP1: Final = "top1"  # predicted class
    CONFIDENCE: Final = "confidence"  # softmax probability of the predicted class
    TARGET_PROBABILITY: Final = "target_probability"
    IN_TOP5: Final = "in_top5"
    CHECKSUM: Final = "checksum"  # CRC-32 of the decoded pixels; older runs have none


class Hardest:
    """Columns of the hardest images: the lowest target probability first."""

    IMAGE: Final = Prediction.IMAGE
    TARGET: Final = Prediction.TARGET  # these three as in the predictions
    TOP1: Final = Prediction.TOP1
    TARGET_PROBABILITY: Final = Prediction.TARGET_PROBABILITY
    TARGET_NAME: Final = "target_name"  # of the class
    TOP1_NAME: Final = "top1_name"
    THUMBNAIL: Final = "thumbnail"  # bytes of a small PNG
