"""Packed data sets: the folder's images, labels, reasons and order, whatever happens."""

import errno
import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images
from small_disks import mounted
from torch.utils.data import DataLoader, Dataset

from mixerbench.config.sources import is_packed
from mixerbench.data.decode import UnreadableImageError
from mixerbench.data.images import Images, Splits
from mixerbench.data.packing import writing as writing_module
from mixerbench.data.packing.format import FILE, FORMAT, JPEG, RAW, read_manifest
from mixerbench.data.packing.job import PackingJob
from mixerbench.data.packing.opening import open_packed
from mixerbench.data.packing.reading import PackedImages
from mixerbench.data.packing.settings import Packing
from mixerbench.data.packing.verifying import verify
from mixerbench.data.packing.writing import pack
from mixerbench.data.source import open_images
from mixerbench.errors import Refusal, TrainingStopped
from mixerbench.files import file_sha256

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")

SHORT_SIDE = 64
SHARD_IMAGES = 3
KINDS = {
    "files": Packing(shard_images=SHARD_IMAGES),
    "jpeg": Packing(SHORT_SIDE, shard_images=SHARD_IMAGES),
    "raw": Packing(SHORT_SIDE, format="raw", shard_images=SHARD_IMAGES),
    "raw, as large as they are": Packing(format="raw", shard_images=SHARD_IMAGES),
}


# --- a folder with everything that folders have -----------------------------------------------


def photograph(number: int, width: int = 160, height: int = 120) -> Image.Image:
    left, top = 31 * number % 400, 17 * number % 250
    image = Image.fromarray(load_sample_images().images[number % 2])
    return image.crop((left, top, left + width, top + height))


def make_tree(root: Path) -> None:
    for split, count in (("train", 7), ("val", 2)):
        for label in ("a flower", "tempel für alle"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                photograph(number).save(folder / f"{number}.JPEG", quality=92)
    for split in ("train", "val"):
        folder = root / split / "a flower"
        turned = Image.Exif()
        turned[0x0112] = 6
        photograph(3).save(folder / "turned.jpg", quality=92, exif=turned)
        photograph(4).convert("L").save(folder / "grey scale.jpg")
        photograph(5).convert("CMYK").save(folder / "cmyk.jpg")
        photograph(6).convert("RGBA").save(folder / "ä.png")
        photograph(7, 100, 300).save(folder / os.fsdecode(b"\xff.JPEG"))
        photograph(8, 48, 40).save(folder / "small.png")
        photograph(9, 70, SHORT_SIDE).save(folder / "just.JPEG")
        whole = (folder / "0.JPEG").read_bytes()
        (folder / "half.JPEG").write_bytes(whole[: len(whole) // 2])
        (folder / "html.JPEG").write_text("<!DOCTYPE html>")
        (folder / "empty.JPEG").touch()
        (folder / "nowhere.JPEG").symlink_to("missing")
        broken = bytearray((folder / "ä.png").read_bytes())
        broken[500] ^= 1
        (folder / "sum.png").write_bytes(broken)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source") / "images"
    make_tree(root)
    return root


@pytest.fixture(scope="module")
def folder(protocol, root) -> Callable[..., Splits]:
    def get(exif_orientation: bool = True) -> Splits:
        return open_images(
            protocol(
                "folder",
                data__root=str(root),
                data__exif_orientation=exif_orientation,
                recipe__batch__size=4,
            )
        )

    return get


@pytest.fixture(scope="module")
def settings_of(protocol) -> Callable[..., bool]:
    return lambda turn=True: protocol("folder", data__exif_orientation=turn).data.exif_orientation


@pytest.fixture(scope="module")
def packed(tmp_path_factory, folder, root) -> Callable[[str], Path]:
    """The folder packed in one of ``KINDS``: only to be read."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("packed") / "out"
            pack(folder(), root, made[kind], KINDS[kind], True, jobs=2)
        return made[kind]

    return get


@pytest.fixture
def copy(packed, tmp_path) -> Callable[[str], Path]:
    """A packed folder that a test may damage."""
    return lambda kind: Path(shutil.copytree(packed(kind), tmp_path / "copy"))


def names(images: Images) -> list[str]:
    return [images.name(index) for index in range(len(images.targets))]


def outcomes(images: Images) -> list[object]:
    """Of each image its pixels, or the reason why there are none."""
    found: list[object] = []
    for index in range(len(images.targets)):
        try:
            pixels = np.asarray(images.load(index))
            found.append((pixels.shape, pixels.tobytes()))
        except UnreadableImageError as error:
            found.append(error.reason)
    return found


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


# --- what is read -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_names_labels_classes_and_digest_are_those_of_the_folder(kind, packed, folder, settings_of):
    source, found = folder(), open_packed(packed(kind), settings_of())
    for ours, theirs in ((found.train, source.train), (found.val, source.val)):
        assert names(ours) == names(theirs)
        assert list(ours.targets) == list(theirs.targets)
        assert {type(target) for target in ours.targets} == {int}
        assert list(ours.classes) == list(theirs.classes)
    assert (found.digest(), found.content) == (source.digest(), source.content)
    assert is_packed(packed(kind))


@pytest.mark.parametrize("turn", [True, False])
def test_originals_have_the_folders_pixels_and_reasons(turn, packed, folder, settings_of):
    source, found = folder(turn), open_packed(packed("files"), settings_of(turn))
    assert outcomes(found.train) == outcomes(source.train)
    assert outcomes(found.val) == outcomes(source.val)
    reasons = [one for one in outcomes(found.train) if isinstance(one, str)]
    assert len(reasons) == 5
    assert "No such file or directory" in reasons


@pytest.mark.parametrize("kind", KINDS)
def test_validation_images_are_the_original_files_in_every_packing(
    kind, packed, folder, root, settings_of
):
    val = open_packed(packed(kind), settings_of()).val
    assert outcomes(val) == outcomes(folder().val)
    for index, name in enumerate(names(val)):
        try:
            stored = val.read(index)
        except UnreadableImageError:
            continue
        assert stored.kind == FILE
        assert stored.data == (root / "val" / name).read_bytes()
        with Image.open(io.BytesIO(stored.data)) as header:
            assert (stored.width, stored.height) == header.size


def test_bare_pixels_that_are_not_resized_are_the_folders(packed, folder, settings_of):
    found = open_packed(packed("raw, as large as they are"), settings_of())
    assert outcomes(found.train) == outcomes(folder().train)
    assert found.packed is None


def resized(pixels: np.ndarray) -> np.ndarray:
    """As torchvision's Resize, by Pillow."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    image = Image.fromarray(pixels)
    if min(image.size) <= SHORT_SIDE:
        return pixels
    return np.asarray(resize(image, SHORT_SIDE, InterpolationMode.BICUBIC))


def pairs(source: Images, found: Images) -> Iterator[tuple[int, np.ndarray]]:
    """Index and resized pixels of the folder's image, of those that can be read."""
    for index in range(len(source.targets)):
        try:
            pixels = np.asarray(source.load(index))
        except UnreadableImageError as error:
            with pytest.raises(UnreadableImageError) as caught:
                found.load(index)
            assert caught.value.reason == error.reason
            continue
        yield index, resized(pixels)


def test_bare_pixels_are_those_that_pillow_resizes(packed, folder, settings_of):
    found = open_packed(packed("raw"), settings_of()).train
    sizes = set()
    for index, expected in pairs(folder().train, found):
        stored = found.read(index)
        assert stored.kind == RAW
        assert np.array_equal(stored.pixels(), expected)
        assert np.shares_memory(stored.pixels(), np.frombuffer(stored.data, np.uint8))
        assert np.array_equal(np.asarray(found.load(index)), expected)
        sizes.add(expected.shape[:2])
    assert {(64, 85), (85, 64), (192, 64), (40, 48), (64, 70)} == sizes


def test_jpegs_are_near_to_what_pillow_resizes_and_small_files_are_kept(
    packed, folder, root, settings_of
):
    found = open_packed(packed("jpeg"), settings_of()).train
    kept = []
    for index, expected in pairs(folder().train, found):
        stored, pixels = found.read(index), np.asarray(found.load(index))
        assert pixels.shape == expected.shape
        if stored.kind == FILE:
            assert stored.data == (root / "train" / found.name(index)).read_bytes()
            assert np.array_equal(pixels, expected)
            kept.append(found.name(index))
            continue
        assert stored.kind == JPEG
        assert (stored.height, stored.width) == expected.shape[:2]
        assert np.abs(pixels.astype(int) - expected).mean() < 5
        with Image.open(io.BytesIO(stored.data)) as image:
            assert (image.format, image.mode, len(image.getexif())) == ("JPEG", "RGB", 0)
    assert kept == ["a flower/just.JPEG", "a flower/small.png"]


def test_quality_matters(tmp_path, folder, root, packed):
    out = tmp_path / "out"
    pack(folder(), root, out, Packing(SHORT_SIDE, quality=30, shard_images=SHARD_IMAGES), True, 1)
    sizes = [(place / "train-00000.arrow").stat().st_size for place in (out, packed("jpeg"))]
    assert sizes[0] < sizes[1]


def test_a_description_names_what_was_done_to_the_pixels():
    assert Packing().description is None
    assert Packing(format="raw").description is None
    assert Packing(256, format="raw").description == "short_side=256 bicubic"
    assert Packing(256).description == "short_side=256 jpeg quality=90 4:2:0 bicubic"
    assert Packing(256, quality=80).description == "short_side=256 jpeg quality=80 4:2:0 bicubic"


@pytest.mark.parametrize("kind", KINDS)
def test_only_training_images_are_described(kind, packed, settings_of):
    found = open_packed(packed(kind), settings_of())
    assert found.packed == KINDS[kind].description


def test_any_reader_of_arrow_files_finds_everything(packed, folder):
    out = packed("jpeg")
    source = folder().train
    tables = [pa.ipc.open_file(path).read_all() for path in sorted(out.glob("train-*.arrow"))]
    assert [len(table) for table in tables[:-1]] == [SHARD_IMAGES] * (len(tables) - 1)
    rows = [row for table in tables for row in table.to_pylist()]
    assert [os.fsdecode(row["name"]) for row in rows] == names(source)
    assert [row["target"] for row in rows] == list(source.targets)
    assert all(zlib.crc32(row["image"]) == row["crc32"] for row in rows)


class Pixels(Dataset):
    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images.targets)

    def __getitem__(self, index: int) -> tuple[int, int]:
        try:
            return index, zlib.crc32(np.asarray(self.images.load(index)).tobytes())
        except UnreadableImageError as error:
            return index, zlib.crc32(error.reason.encode())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_read_the_same_as_one(kind, packed, settings_of):
    images = open_packed(packed(kind), settings_of()).train
    images.read(0)  # a file that is open is inherited
    one, two = (
        [[part.tolist() for part in item] for item in loader]
        for loader in (DataLoader(Pixels(images), 2, num_workers=count) for count in (0, 2))
    )
    assert one == two


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_split_reads_the_same(kind, packed, settings_of):
    images = open_packed(packed(kind), settings_of()).train
    images.read(0)
    text = pickle.dumps(images)
    again: PackedImages = pickle.loads(text)
    assert outcomes(again) == outcomes(images)
    assert names(again) == names(images)


def test_more_shards_than_files_may_be_open(packed, settings_of, monkeypatch):
    monkeypatch.setattr("mixerbench.data.packing.reading._OPEN_SHARDS", 2)
    images = open_packed(packed("files"), settings_of()).train
    before = len(os.listdir("/proc/self/fd"))
    assert len(outcomes(images)) > 3 * SHARD_IMAGES
    assert len(os.listdir("/proc/self/fd")) <= before + 2


# --- damage -----------------------------------------------------------------------------------

_flips = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("kind", ["files", "raw"])
def test_a_flipped_bit_is_found_by_verifying_and_never_read_as_an_image(kind, copy, settings_of):
    out = copy(kind)
    path = out / "train-00001.arrow"
    whole = path.read_bytes()
    sound = outcomes(open_packed(out, settings_of()).train)

    @_flips
    @given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
    def check(place: float, bit: int) -> None:
        content = bytearray(whole)
        content[int(place * len(whole))] ^= 1 << bit
        path.write_bytes(content)
        assert verify(out, jobs=1)[1] == ["train-00001.arrow (its checksum differs)"]
        for before, now in zip(sound, outcomes(open_packed(out, settings_of()).train), strict=True):
            assert now == before or now == "its checksum in train-00001.arrow differs"

    check()
    path.write_bytes(whole)
    assert verify(out, jobs=2)[1] == []


def test_a_damaged_image_is_unreadable_with_its_name(copy, settings_of):
    out = copy("raw")
    images = open_packed(out, settings_of()).train
    path, data = out / "train-00000.arrow", images.read(1).data
    content = path.read_bytes()
    place = content.index(data)
    path.write_bytes(content[:place] + bytes(len(data)) + content[place + len(data) :])
    assert images.read(0)
    with pytest.raises(UnreadableImageError) as caught:
        images.load(1)
    reason = "its checksum in train-00000.arrow differs"
    assert caught.value.reason == reason
    assert str(caught.value) == f"{out}/train/{images.name(1)}: {reason}"


def test_a_shard_that_disappears_or_shrinks_gives_unreadable_images(copy, settings_of):
    out = copy("files")
    images = open_packed(out, settings_of()).train
    (out / "train-00000.arrow").unlink()
    with pytest.raises(UnreadableImageError, match="No such file"):
        images.load(0)
    assert images.read(SHARD_IMAGES)
    os.truncate(out / "train-00001.arrow", 100)  # a map of it would be a SIGBUS
    with pytest.raises(UnreadableImageError, match="checksum"):
        images.load(SHARD_IMAGES)


@pytest.mark.parametrize(
    ("file", "fault"),
    [
        ("train-00002.arrow", "missing"),
        ("val.index.arrow", "missing"),
        ("train-00000.arrow", "short"),
    ],
)
def test_missing_and_short_files_are_refused_at_opening(file, fault, copy, settings_of, refusal):
    out = copy("jpeg")
    if fault == "missing":
        (out / file).unlink()
    else:
        os.truncate(out / file, 1000)
    message = refusal(lambda: open_packed(out, settings_of()))
    assert file in message
    assert "--verify" in message
    expected = "missing" if fault == "missing" else "1,000 bytes instead of"
    (line,) = verify(out, jobs=2)[1]
    assert line.startswith(f"{file} ({expected}")


def test_a_damaged_index_is_refused_at_opening(copy, settings_of, refusal):
    out = copy("files")
    path = out / "train.index.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "train.index.arrow" in refusal(lambda: open_packed(out, settings_of()))


def test_damaged_files_are_written_again_once_they_are_removed(copy, folder, root):
    out = copy("jpeg")
    whole = contents(out)
    for name in ("train-00001.arrow", "train.index.arrow"):
        (out / name).unlink()
    result = pack(folder(), root, out, KINDS["jpeg"], True, jobs=1)
    assert result.new_shards == 1
    assert contents(out) == whole
    (out / "train.index.arrow").unlink()
    assert pack(folder(), root, out, KINDS["jpeg"], True, jobs=1).new_shards == 0
    assert contents(out) == whole


# --- what does not fit --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_that_were_turned_otherwise_are_refused(kind, packed, settings_of, refusal):
    if kind == "files":  # turned, or not, when they are read
        open_packed(packed(kind), settings_of(False))
        return
    message = refusal(lambda: open_packed(packed(kind), settings_of(False)))
    assert "exif_orientation=true" in message
    assert "say false" in message


def test_what_is_not_packed_is_refused(tmp_path, settings_of, refusal):
    assert not is_packed(tmp_path)
    assert "pack.json" in refusal(lambda: open_packed(tmp_path, settings_of()))


def test_what_was_packed_before_sizes_counted_keeps_its_fingerprint(
    tmp_path, folder, root, settings_of, monkeypatch
):
    def head(job: PackingJob) -> dict[str, object]:
        return {"format": 1, "settings": job.settings, "source": job.splits.digest()}

    with monkeypatch.context() as patched:
        patched.setattr(PackingJob, "head", property(head))
        pack(folder(), root, tmp_path, KINDS["jpeg"], True, jobs=1)
    found = open_packed(tmp_path, settings_of())
    assert (found.digest(), found.content) == (folder().digest(), None)
    assert verify(tmp_path, 1)[1] == []


def edit(out: Path, change: Callable[[dict], object]) -> None:
    about = json.loads((out / "pack.json").read_text())
    change(about)
    (out / "pack.json").write_text(json.dumps(about))


EDITS: dict[str, tuple[str, Callable[[dict], object], str]] = {
    "of files of other sizes": (
        "jpeg", lambda about: about.update(content="files 0123"), "written with content="
    ),
    "of files of unknown sizes": (
        "jpeg", lambda about: about.pop("content"), "written with content="
    ),
    "described as nothing": (
        "jpeg", lambda about: about.update(description=None), "pack.json describes None"
    ),
    "described as the original files": (
        "raw",
        lambda about: (
            about.update(description=None),
            about["settings"].update(
                short_side=None, format="files", quality=None, interpolation=None,
                subsampling=None, exif_orientation=None,
            ),
        ),
        "train-00000.arrow was written with",
    ),
    "described as larger": (
        "raw",
        lambda about: (
            about.update(description="short_side=640 bicubic"),
            about["settings"].update(short_side=640),
        ),
        "short_side=64, and pack.json says short_side=640",
    ),
    "turned": (
        "raw", lambda about: about["settings"].update(exif_orientation=False),
        "exif_orientation=True, and pack.json says exif_orientation=False",
    ),
    "of another source": (
        "files", lambda about: about.update(source="0" * 16), "and pack.json says source=0000"
    ),
    "classes exchanged": ("files", lambda about: about["classes"].reverse(), "the classes of"),
    "a class more": ("files", lambda about: about["classes"].append("z"), "the classes of"),
    "an image less": (
        "files", lambda about: about["splits"]["val"].update(images=3), "its index lists"
    ),
    "a shard less": (
        "files", lambda about: about["splits"]["train"]["shards"].pop(), "its index lists"
    ),
    "shards exchanged": (
        "files", lambda about: about["splits"]["train"]["shards"].reverse(), "was written with"
    ),
    "splits exchanged": (
        "files",
        lambda about: about.update(
            splits={"train": about["splits"]["val"], "val": about["splits"]["train"]}
        ),
        "was written with split=val, and pack.json says split=train",
    ),
    "lacking settings": ("files", lambda about: about.pop("settings"), "KeyError: 'settings'"),
    "of no shape": ("files", lambda about: about.update(splits=[]), "is not as it was written"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EDITS)
def test_a_pack_json_that_says_other_than_the_shards_is_refused(kind, copy, settings_of, refusal):
    packing, change, words = EDITS[kind]
    out = copy(packing)
    edit(out, change)
    turn = json.loads((out / "pack.json").read_text()).get("settings", {}).get("exif_orientation")
    message = refusal(lambda: open_packed(out, settings_of(turn is not False)))
    assert words in message
    assert "pack the images again" in message
    assert words in refusal(lambda: verify(out, 1))


def test_an_index_of_other_labels_is_refused(copy, settings_of, refusal):
    """Its checksum in pack.json is right: only the shards know better."""
    out = copy("files")
    path = out / "train.index.arrow"
    with pa.ipc.open_file(path) as reader:
        batch = reader.get_batch(0)
    targets = batch["target"].to_pylist()
    columns = {name: batch[name] for name in batch.schema.names}
    columns["target"] = pa.array([targets[0], *targets[:-1]], pa.int32())
    with pa.ipc.new_file(path, batch.schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=batch.schema))
    index = {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    edit(out, lambda about: about["splits"]["train"].update(index=index))
    message = refusal(lambda: open_packed(out, settings_of()))
    assert "other names or labels than were packed" in message


def test_verifying_reads_the_images_and_not_only_what_pack_json_says_of_them(copy, refusal):
    """Bytes of an image, its shard's checksum and the index's, all changed: not the row's."""
    out = copy("files")
    path = out / "train-00000.arrow"
    content = bytearray(path.read_bytes())
    place = content.index(b"\xff\xd8\xff") + 200
    content[place] ^= 1
    path.write_bytes(content)
    edit(out, lambda about: about["splits"]["train"]["shards"][0].update(sha256=file_sha256(path)))
    assert "is not that of its bytes" in refusal(lambda: verify(out, 1))


def test_another_format_is_refused(copy, settings_of, refusal):
    out = copy("files")
    about = read_manifest(out) | {"format": FORMAT + 1}
    (out / "pack.json").write_text(json.dumps(about))
    assert f"format {FORMAT + 1}" in refusal(lambda: open_packed(out, settings_of()))
    (out / "pack.json").write_text("{")
    assert "pack.json" in refusal(lambda: open_packed(out, settings_of()))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"short_side": 0}, "short_side=0"),
        ({"format": "png"}, "jpeg, raw"),
        ({"short_side": 256, "quality": 101}, "1 to 100"),
        ({"quality": 80}, "short_side"),
        ({"short_side": 256, "format": "raw", "quality": 80}, "format=jpeg"),
        ({"shard_images": 0}, "shard_images=0"),
    ],
)
def test_settings_that_fit_nothing_are_refused(fields, words, refusal):
    assert words in refusal(lambda: Packing(**fields))


@pytest.fixture
def refused(folder, root) -> Callable[..., str]:
    """What ``pack`` says when it refuses."""

    def get(out: Path, packing: Packing = KINDS["files"], splits: Splits | None = None) -> str:
        before = set(os.listdir(out))
        with pytest.raises(Refusal) as caught:
            pack(splits or folder(), root, out, packing, True, 1)
        assert set(os.listdir(out)) - {".lock"} == before - {".lock"}
        text = str(caught.value)
        assert "\n" not in text
        return text

    return get


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Packing(SHORT_SIDE + 1, shard_images=SHARD_IMAGES), "short_side=64"),
        (Packing(SHORT_SIDE, quality=91, shard_images=SHARD_IMAGES), "quality=90"),
        (Packing(SHORT_SIDE, "raw", shard_images=SHARD_IMAGES), "format=jpeg"),
        (Packing(shard_images=SHARD_IMAGES), "short_side=64"),
        (Packing(SHORT_SIDE), "shard_images=3"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_do_not_go_into_the_same_folder(
    other, words, finished, copy, folder, root, refused
):
    out = copy("jpeg")
    if not finished:
        interrupt(folder(), root, out, fresh=True)
    assert words in refused(out, other)


def test_other_images_do_not_go_into_the_same_folder(copy, folder, refused):
    splits = folder()
    splits.train.targets[0] = 1
    assert "names or labels differ" in refused(copy("files"), splits=splits)


def test_a_folder_with_other_files_is_left_alone(tmp_path, refused):
    (tmp_path / "thesis.tex").write_text("...")
    assert "'thesis.tex'" in refused(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "..."


def test_a_folder_among_the_images_is_refused(root, refused):
    out = root / "train" / "a flower"
    assert "among the images" in refused(out)


def test_a_folder_that_another_process_packs_is_refused(tmp_path, refused, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr(writing_module, "_LOCK_SECONDS", 0)
    with FileLock(tmp_path / ".lock"):
        assert "another process" in refused(tmp_path)


# --- interrupted, and continued -----------------------------------------------------------------


class Slow:
    """Images that take their time, or something worse."""

    def __init__(self, images: Images, load: Callable[[int], object]) -> None:
        self.targets, self.classes, self.name = images.targets, images.classes, images.name
        self._images, self._before = images, load

    def load(self, index: int) -> np.ndarray:
        self._before(index)
        return self._images.load(index)


def slow(splits: Splits, load: Callable[[int], object] = lambda index: time.sleep(0.03)) -> Splits:
    return replace(splits, train=Slow(splits.train, load), val=Slow(splits.val, load))


def stopped(splits: Splits, root: Path, out: Path, **options: object) -> str:
    with pytest.raises(TrainingStopped) as caught:
        pack(splits, root, out, KINDS["jpeg"], True, jobs=2, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "the same command goes on with the others." in text
    assert not list(out.glob("*.part"))
    return text


def interrupt(splits: Splits, root: Path, out: Path, fresh: bool = False) -> str:
    """Ctrl-C when some shards are there."""
    if fresh:
        shutil.rmtree(out)

    def progress(done: int, total: int) -> None:
        if len(list(out.glob("train-*.arrow"))) >= 2:
            raise KeyboardInterrupt

    return stopped(slow(splits), root, out, progress=progress)


def test_the_number_of_processes_does_not_matter(tmp_path, folder, root, packed):
    for jobs in (1, 3):
        pack(folder(), root, tmp_path / str(jobs), KINDS["jpeg"], True, jobs)
        assert contents(tmp_path / str(jobs)) == contents(packed("jpeg"))


def test_ctrl_c_keeps_whole_shards_and_the_same_call_goes_on(
    tmp_path, folder, root, packed, settings_of, refusal
):
    out = tmp_path / "out"
    assert interrupt(folder(), root, out).startswith("interrupted. ")
    assert is_packed(out)
    assert "run the same 'mixerbench pack' again" in refusal(
        lambda: open_packed(out, settings_of())
    )
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("*-*.arrow")}
    calls: list[tuple[int, int]] = []
    result = pack(folder(), root, out, KINDS["jpeg"], True, 2, lambda *args: calls.append(args))
    assert result.new_shards == result.shards - len(there)
    assert all((out / name).stat().st_mtime_ns == then for name, then in there.items())
    assert contents(out) == contents(packed("jpeg"))
    images = sum(result.images.values())
    assert calls[0][0] >= len(there) * (SHARD_IMAGES - 1)
    assert calls[-1] == (images, images)
    assert calls == sorted(calls)


def test_a_process_that_is_killed_again_and_again_comes_to_the_same_end(
    tmp_path, folder, root, packed
):
    out, splits = tmp_path / "out", slow(folder())
    fork = multiprocessing.get_context("fork")
    found = 0
    for _ in range(3):
        process = fork.Process(
            target=pack, args=(splits, root, out, KINDS["jpeg"], True, 2), daemon=False
        )
        process.start()
        deadline = time.monotonic() + 30
        while len(list(out.glob("*-*.arrow"))) <= found:
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        found = len(list(out.glob("*-*.arrow")))
    assert not (out / "pack.json").exists()
    result = pack(folder(), root, out, KINDS["jpeg"], True, 2)
    assert 0 < result.new_shards <= result.shards - 3
    assert contents(out) == contents(packed("jpeg"))


@pytest.mark.parametrize("left", [0, 1, 5])
def test_a_journal_that_lacks_lines_costs_nothing(left, tmp_path, folder, root, packed):
    out = tmp_path / "out"
    interrupt(folder(), root, out)
    journal = out / "packing.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]) + lines[-1][:left])
    there = len(list(out.glob("*-*.arrow")))
    result = pack(folder(), root, out, KINDS["jpeg"], True, 2)
    assert result.new_shards == result.shards - there
    assert contents(out) == contents(packed("jpeg"))


def test_a_shard_that_is_not_whole_is_written_again(tmp_path, folder, root, packed):
    out = tmp_path / "out"
    interrupt(folder(), root, out)
    first, second = sorted(out.glob("train-*.arrow"))[:2]
    os.truncate(first, first.stat().st_size - 100)
    shutil.copy(packed("files") / second.name, second)
    pack(folder(), root, out, KINDS["jpeg"], True, 2)
    assert contents(out) == contents(packed("jpeg"))


def test_a_file_system_that_goes_away_is_no_unreadable_image(
    tmp_path, folder, root, packed, monkeypatch
):
    out, gone = tmp_path / "out", "3.JPEG"
    read_bytes = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.name == gone:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read_bytes(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fail)  # in the forked processes
        text = stopped(folder(), root, out)
    assert "Input/output error" in text
    assert gone in text
    pack(folder(), root, out, KINDS["jpeg"], True, 2)
    assert contents(out) == contents(packed("jpeg"))


def test_a_process_that_is_killed_alone_is_explained(tmp_path, folder, root):
    def die(index: int) -> None:
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TrainingStopped, match="was killed, maybe for want of memory: set jobs"):
        pack(slow(folder(), die), root, tmp_path / "out", KINDS["jpeg"], True, jobs=2)


def test_a_full_disk_keeps_whole_shards(tmp_path, folder, root, packed):
    size = sum(map(len, contents(packed("jpeg")).values()))
    with mounted(tmp_path / "disk", f"{size // 1024}k") as disk:
        out = disk.root / "out"
        disk.fill(left=size // 2)
        text = stopped(folder(), root, out)
        assert "No space left on device: make room." in text
        disk.make_room()
        shutil.copytree(out, tmp_path / "out")
    whole = list((tmp_path / "out").glob("*-*.arrow"))
    assert whole
    result = pack(folder(), root, tmp_path / "out", KINDS["jpeg"], True, 2)
    assert result.new_shards == result.shards - len(whole)
    assert contents(tmp_path / "out") == contents(packed("jpeg"))


def test_unreadable_images_are_counted_and_named(copy, folder, root):
    result = pack(folder(), root, copy("files"), KINDS["files"], True, 1)
    assert result.new_shards == 0
    assert len(result.unreadable) == 2 * 5
    assert result.unreadable[0] == "train/a flower/empty.JPEG"
    assert result.images == {"train": 26, "val": 16}
