"""What makes an image new, and what the Dockerfiles promise."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from dev.images.recipe import RECIPES, ImageReference
from dev.paths import REPOSITORY

NAMES = sorted(RECIPES)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that images are made of."""
    for recipe in RECIPES.values():
        for source in recipe.inputs():
            target = tmp_path / source.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return tmp_path


def _key(name: str, root: Path, *, base: str = "base", version: str = "1") -> str:
    return RECIPES[name].key(base=base, version=version, root=root)


@pytest.mark.parametrize("name", NAMES)
def test_equal_files_make_an_equal_key_wherever_they_lie(checkout: Path, name: str) -> None:
    assert _key(name, checkout) == _key(name, REPOSITORY)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["{name}/Dockerfile", "requirements/{name}.txt", "{name}/dedicate_{name}/__init__.py"])
def test_each_input_changes_the_key(checkout: Path, name: str, file: str) -> None:
    before = _key(name, checkout)
    path = checkout / file.format(name=name)
    path.write_text(path.read_text() + "# changed\n")
    assert _key(name, checkout) != before


@pytest.mark.parametrize("name", NAMES)
def test_a_renamed_file_changes_the_key(checkout: Path, name: str) -> None:
    before = _key(name, checkout)
    package = checkout / name / f"dedicate_{name}"
    (package / "errors.py").rename(package / "faults_by_another_name.py")
    assert _key(name, checkout) != before


@pytest.mark.parametrize("name", NAMES)
def test_byte_code_and_the_other_image_do_not_change_the_key(checkout: Path, name: str) -> None:
    before = _key(name, checkout)
    cache = checkout / name / f"dedicate_{name}" / "__pycache__"
    cache.mkdir()
    (cache / "x.pyc").write_bytes(b"x")
    for other in set(NAMES) - {name}:
        (checkout / other / "Dockerfile").write_text("FROM scratch\n")
    assert _key(name, checkout) == before


def test_base_and_version_are_part_of_the_key(checkout: Path) -> None:
    keys = {_key("runtime", checkout, base=base, version=version) for base in "ab" for version in "12"}
    assert len(keys) == 4


def test_a_reference_has_tag_and_digest() -> None:
    reference = ImageReference("10.0.0.1:5000", "dedicate-runtime", "0123", "sha256:ab")
    assert str(reference) == "10.0.0.1:5000/dedicate-runtime:0123@sha256:ab"


@pytest.mark.parametrize("name", NAMES)
def test_a_dockerfile_keeps_the_contract(name: str) -> None:
    text = (REPOSITORY / RECIPES[name].dockerfile).read_text()
    final = text[text.rindex("\nFROM ") :]
    assert f'ENTRYPOINT ["python", "-m", "dedicate_{name}"]' in final
    assert "USER 10001:10001" in final
    assert "--require-hashes" in final
    # Code comes after dependencies, or each change of it would move gigabytes.
    assert final.index(f"COPY requirements/{name}.txt") < final.index(f"COPY {name}/dedicate_{name}")


@pytest.mark.parametrize("name", NAMES)
def test_a_dockerfile_copies_only_what_the_key_covers(name: str) -> None:
    recipe = RECIPES[name]
    text = (REPOSITORY / recipe.dockerfile).read_text()
    covered = {str(path.relative_to(REPOSITORY)) for path in recipe.inputs()} | {str(recipe.package)}
    copied = re.findall(r"^COPY ([^-]\S*) ", text, re.MULTILINE)
    assert copied
    assert all(path in covered or Path(path).is_relative_to(recipe.package) for path in copied)


def test_the_two_dockerfiles_differ_in_names_only() -> None:
    texts = []
    for name, other in (("operator", "runtime"), ("runtime", "operator")):
        text = (REPOSITORY / name / "Dockerfile").read_text()
        assert f"dedicate_{other}" not in text
        # The runtime alone has something to compile.
        paragraphs = [part for part in text.split("\n\n") if "kernels" not in part]
        kept = [
            line
            for line in "\n\n".join(paragraphs).replace(name, "NAME").splitlines()
            if not line.startswith(("#", "EXPOSE")) and "image.description" not in line
        ]
        texts.append(kept)
    assert texts[0] == texts[1]
