"""A directory of Tenant files: what is good is followed, what is not is refused by name and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lionrock.tenancy.following import Refusal, TenantFiles
from lionrock.tenancy.spec import TenantResource

TENANT = """\
apiVersion: lionrock.io/v1alpha1
kind: Tenant
metadata: {{name: {name}}}
spec: {{territory: {territory}, principals: [{{spiffeId: "spiffe://td/tenant/{name}/user/*", purposes: [testing]}}]}}
"""


class House:
    """A directory, what follows it, and whoever is told: tenants' names are claimed once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = TenantFiles(directory)
        self.tenants: dict[str, str] = {}
        self.times_told = 0

    def write(self, file: str, *names: str, territory: str = "HK") -> None:
        path = self.directory / file
        fresh = path.with_name(f".{file}")
        fresh.write_text("---\n".join(TENANT.format(name=name, territory=territory) for name in names))
        fresh.replace(path)

    def look(self) -> Sequence[Refusal]:
        return self.files.settle(self.files.read(), self._accept)

    def _accept(self, tenants: Sequence[TenantResource]) -> None:
        names = [tenant.name for tenant in tenants]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"tenant {name!r} is defined twice")
        self.times_told += 1
        self.tenants = {tenant.name: tenant.spec.territory for tenant in tenants}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_new_changed_and_removed_files_are_followed_and_others_are_not_read_again(house: House) -> None:
    house.write("a.yaml", "a")
    house.write("b.json.txt", "hidden")
    assert house.look() == []
    assert house.tenants == {"a": "HK"}
    house.write("b.yaml", "b", "c")
    assert house.look() == []
    assert house.tenants == {"a": "HK", "b": "HK", "c": "HK"}
    house.write("a.yaml", "a", territory="SG")
    assert house.look() == []
    assert house.tenants["a"] == "SG"
    (house.directory / "b.yaml").unlink()
    assert house.look() == []
    assert house.tenants == {"a": "SG"}
    told = house.times_told
    assert house.look() == ()
    assert house.times_told == told


def test_a_file_that_is_no_good_is_refused_once_by_name_and_what_it_said_stays(house: House) -> None:
    house.write("a.yaml", "a")
    house.look()
    house.write("a.yaml", "a", territory="nowhere")
    house.write("b.yaml", "b")
    [refusal] = house.look()
    assert refusal.file == "a.yaml"
    assert "spec.territory" in refusal.why
    assert house.tenants == {"a": "HK", "b": "HK"}
    assert house.look() == ()
    house.write("a.yaml", "a", territory="SG")
    assert house.look() == []
    assert house.tenants["a"] == "SG"


def test_of_two_files_that_claim_one_name_the_first_stays_until_it_gives_it_up(house: House) -> None:
    house.write("b.yaml", "shared")
    house.look()
    house.write("a.yaml", "shared", territory="SG")
    house.write("c.yaml", "c")
    assert house.look() == [Refusal("a.yaml", "tenant 'shared' is defined twice")]
    assert house.tenants == {"shared": "HK", "c": "HK"}
    (house.directory / "b.yaml").unlink()
    assert house.look() == []
    assert house.tenants == {"shared": "SG", "c": "HK"}


def test_a_tenant_moves_from_one_file_to_another(house: House) -> None:
    house.write("a.yaml", "mover", "stays")
    house.look()
    house.write("a.yaml", "stays")
    house.write("b.yaml", "mover")
    assert house.look() == []
    assert house.tenants == {"mover": "HK", "stays": "HK"}


def test_two_files_exchange_tenants_although_a_third_is_no_good(house: House) -> None:
    house.write("a.yaml", "a")
    house.write("b.yaml", "b")
    house.look()
    house.write("a.yaml", "x")
    house.write("b.yaml", "a")
    house.write("c.yaml", "x")
    [refusal] = house.look()
    assert house.tenants == {"a": "HK", "x": "HK"}
    assert refusal.file in ("a.yaml", "c.yaml")


def test_a_few_files_that_do_not_fit_cost_little_among_many(house: House) -> None:
    for number in range(256):
        house.write(f"{number:03}.yaml", f"t{number}")
    for number in (17, 200):
        house.write(f"{number:03}.yaml", "t0", f"t{number}")
    assert [refusal.file for refusal in house.look()] == ["017.yaml", "200.yaml"]
    assert len(house.tenants) == 254
    assert house.times_told < 64


def test_a_directory_that_cannot_be_read_takes_nobody_away(house: House) -> None:
    house.write("a.yaml", "a")
    house.look()
    (house.directory / "a.yaml").unlink()
    house.directory.rmdir()
    assert [refusal.file for refusal in house.look()] == [None]
    assert house.look() == ()
    assert house.tenants == {"a": "HK"}
    house.directory.mkdir()
    house.look()
    assert house.tenants == {}


def test_a_directory_that_was_never_there_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TenantFiles(tmp_path / "nowhere").start(lambda tenants: None)


def test_a_mounted_config_map_is_followed_through_its_links(house: House) -> None:
    for generation, territory in (("..1", "HK"), ("..2", "SG")):
        (house.directory / generation).mkdir()
        (house.directory / generation / "a.json").write_text(TENANT.format(name="a", territory=territory))
        fresh = house.directory / "..data_tmp"
        fresh.symlink_to(generation)
        fresh.replace(house.directory / "..data")
        if not (house.directory / "a.json").is_symlink():
            (house.directory / "a.json").symlink_to("..data/a.json")
        assert house.look() == []
        assert house.tenants == {"a": territory}
