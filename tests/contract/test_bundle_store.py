"""Publishing, promoting and rolling back: one wins, and what is served is whole at every moment."""

import shutil
import threading
import time
from pathlib import Path

import pytest

from recsys.bundle import store
from recsys.bundle.manifest import CURRENT_FILE
from recsys.bundle.read import open_bundle
from recsys.errors import BundleError, ConfigError, RecsysError
from recsys.retrieval.recommender import Recommender, Request
from tests.bundles import flip, planted, write_planted

# A7: publishing, promoting, rolling back


def test_of_two_publishers_of_a_version_one_wins(root):
    outcomes, start = [], threading.Barrier(2)

    def publish(seed):
        start.wait()
        try:
            outcomes.append(write_planted(root, world=planted(seed=seed), version="v1"))
        except BundleError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=publish, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lost,) = [outcome for outcome in outcomes if isinstance(outcome, BundleError)]
    (won,) = [outcome for outcome in outcomes if isinstance(outcome, Path)]
    assert "someone else" in str(lost) and store.current(root / "films") == won
    Recommender(open_bundle(won))


def test_versions_sort_by_time_and_the_newest_is_served(root):
    folders = [write_planted(root) for _ in range(3)]
    assert [b.version for b in store.listing(root)] == [folder.name for folder in folders] == sorted(f.name for f in folders)
    assert [b.current for b in store.listing(root)] == [False, False, True]


def test_promote_and_roll_back(root):
    first, second = write_planted(root), write_planted(root)
    films = root / "films"
    assert store.rollback(films, check=Recommender) == first.name and store.current(films) == first
    with pytest.raises(BundleError, match="no version before"):
        store.rollback(films)
    assert store.promote(films, second.name) == second.name and store.current(films) == second
    with pytest.raises(BundleError, match="no version v9"):
        store.promote(films, "v9")


def test_a_rollback_goes_back_along_what_was_served(root):
    first, never, third, fourth = (write_planted(root, promote=promote) for promote in (True, False, True, True))
    films = root / "films"
    assert store.rollback(films) == third.name and store.rollback(films) == first.name, "what never served is passed over"
    with pytest.raises(BundleError, match="no version before"):
        store.rollback(films)
    for version in (fourth, never, fourth):
        store.promote(films, version.name)
    store.promote(films, fourth.name)  # once more changes nothing
    assert [store.rollback(films) for _ in range(2)] == [never.name, fourth.name]


def test_where_nothing_was_noted_a_rollback_goes_by_age(root):
    first, second = write_planted(root), write_planted(root)
    (root / "films" / "SERVED").unlink()
    write_planted(root, promote=False)
    assert store.rollback(root / "films") == first.name
    assert store.promote(root / "films", second.name) and store.rollback(root / "films") == first.name


def test_where_current_is_broken_a_rollback_serves_what_was_served_last(root):
    first, second, third = (write_planted(root) for _ in range(3))
    films = root / "films"
    for broken in ("v9\n", "", "../films\n", "\0" * 30):
        (films / "CURRENT").write_text(broken)
        with pytest.raises(BundleError, match=f"recsys bundle rollback {films}"):
            store.current(films)
        assert store.rollback(films, check=Recommender) == third.name and store.current(films) == third
    (films / "CURRENT").write_text("v9\n")
    store.promote(films, first.name)
    assert store.rollback(films) == third.name, "what was served is still noted"
    (films / "CURRENT").unlink()
    for noted in ("", "v1\nv2\n"):
        (films / "SERVED").write_text(noted)
        with pytest.raises(BundleError, match="no version that was served is here"):
            store.rollback(films)
    assert not (films / "CURRENT").exists() and (second / "manifest.json").exists()


def test_what_was_never_served_is_not_rolled_back_to(root):
    write_planted(root, promote=False)
    with pytest.raises(BundleError, match="no version that was served is here"):
        store.rollback(root / "films")


def test_a_rollback_does_not_undo_what_was_published_meanwhile(root):
    films = root / "films"
    write_planted(root), write_planted(root)
    published = []
    with pytest.raises(BundleError, match="another version is served since"):
        store.rollback(films, check=lambda bundle: published.append(write_planted(root)))
    assert store.current(films) == published[0]


def test_the_folder_of_a_name_is_found_from_the_root(root):
    with pytest.raises(BundleError, match="no bundles here"):
        store.of_one_name(root)
    bundle = write_planted(root)
    assert store.of_one_name(root) == store.of_one_name(root / "films") == root / "films"
    with pytest.raises(BundleError, match=f"is one version.*{root / 'films'}"):
        store.of_one_name(bundle)
    (root / "alias").symlink_to(root / "films")
    assert store.of_one_name(root).resolve() == (root / "films").resolve()
    (root / "alias").unlink()
    write_planted(root, name="shows")
    with pytest.raises(BundleError, match=f"{root / 'films'}, {root / 'shows'}"):
        store.of_one_name(root)


def test_a_canary_is_another_version_and_ends_when_all_are_answered_from_it(root):
    first, second = write_planted(root), write_planted(root, promote=False)
    films = root / "films"
    with pytest.raises(BundleError, match="another version"):
        store.set_canary(films, first.name, 0.5)
    assert store.canary(films) is None
    store.set_canary(films, second.name, 0.25)
    assert [listed.canary for listed in store.listing(root)] == [None, 0.25]
    store.promote(films, second.name)
    assert store.canary(films) is None
    store.rollback(films)
    assert store.canary(films) is None and [listed.canary for listed in store.listing(root)] == [None, None]


def test_a_bad_version_never_replaces_a_good_one(root):
    good, bad = write_planted(root), write_planted(root, promote=False)
    flip(bad / "item_vectors.npy")
    with pytest.raises(BundleError, match="item_vectors"):
        store.promote(root / "films", bad.name)
    assert store.current(root / "films") == good


def test_a_bundle_is_meant_by_itself_its_name_or_its_root(root):
    films = write_planted(root, "films")
    assert store.resolve(films) == store.resolve(root / "films") == store.resolve(root) == films
    songs = write_planted(root, "songs")
    with pytest.raises(BundleError, match="films, songs; name one"):
        store.resolve(root)
    assert store.resolve(root, "songs") == songs
    assert {b.name for b in store.listing(root)} == {"films", "songs"}
    assert [b.name for b in store.listing(root / "songs")] == ["songs"]


def test_readers_see_a_whole_version_at_every_moment(root):
    write_planted(root)
    stop, seen, failures = threading.Event(), set(), []

    def read():
        while not stop.is_set():
            try:
                seen.add(Recommender(open_bundle(store.resolve(root))).recommend([Request(user="u1", k=1)])[0].version)
            except RecsysError as error:
                failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    published = [write_planted(root).name for _ in range(5)]
    deadline = time.monotonic() + 30
    while published[-1] not in seen and time.monotonic() < deadline and thread.is_alive():
        thread.join(0.01)
    stop.set()
    thread.join()
    assert not failures and published[-1] in seen


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/abs", ".hidden", "a" * 200, "é", "CURRENT", "manifest.json"])
def test_names_of_bundles_are_plain(root, name):
    with pytest.raises(ConfigError):
        write_planted(root, name)
    if name:  # an empty version means: by the time
        with pytest.raises(ConfigError):
            write_planted(root, version=name)
        with pytest.raises(ConfigError):
            store.resolve(root, name)


@pytest.mark.parametrize("content", ["../../elsewhere\n", "/etc\n", "", "nothing-here\n", "films\x00", "\ud83d"])
def test_current_names_a_version_and_nothing_else(bundle, content):
    (bundle.parent / CURRENT_FILE).write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError, match=r"promote"):
        store.current(bundle.parent)


def test_a_linked_version_is_no_version(bundle, tmp_path):
    (bundle.parent / "z-linked").symlink_to(bundle)
    assert store.versions(bundle.parent) == [bundle.name]


def test_a_version_by_a_name_that_current_cannot_hold_is_no_version(bundle):
    shutil.copytree(bundle, bundle.parent / "my version")
    with pytest.raises(BundleError, match="no version my version"):
        store.promote(bundle.parent, "my version")
    assert store.current(bundle.parent) == bundle


def test_a_broken_current_can_be_looked_at_and_mended(bundle):
    (bundle.parent / CURRENT_FILE).write_text("gone\n")
    (listed,) = store.listing(bundle.parent)
    assert listed.version == bundle.name and not listed.current
    store.promote(bundle.parent, bundle.name)
    assert store.current(bundle.parent) == bundle


def test_a_name_that_is_not_the_bundles_is_refused_not_passed_over(root, bundle):
    assert store.resolve(bundle, "films") == store.resolve(bundle.parent, "films") == bundle
    for path in (bundle, bundle.parent):
        with pytest.raises(BundleError, match="of films, not of songs"):
            store.resolve(path, "songs")


def test_another_publisher_that_finishes_meanwhile_is_no_fault(root, bundle):
    (bundle.parent / ".staging-gone").symlink_to(root / "renamed into place")
    assert store.current(bundle.parent) != write_planted(root, promote=False)


def test_bundles_where_nothing_can_be_written_are_refused_by_name(root):
    root.mkdir(exist_ok=True)
    (root / "file").touch()
    with pytest.raises(BundleError, match="file/films: cannot be made"):
        write_planted(root / "file")
