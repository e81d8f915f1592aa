import pytest
from compare import same

pytestmark = pytest.mark.ex04


@pytest.mark.points(2)
def test_expected_number(student):
    same([len(rows) for rows in student.training_sets(["flickr"] * 10, 5)], [3, 6, 10], "sizes of S_1, S_2, S_3")


@pytest.mark.points(2)
def test_each_set_holds_the_one_before(student, rng):
    sources = [rng.choice("abc") for _ in range(rng.randint(30, 60))]
    sets = [list(rows) for rows in student.training_sets(sources, rng.randint(4, 6))]
    for i, (small, large) in enumerate(zip(sets, sets[1:]), start=1):
        same(set(small) - set(large), set(), f"rows of S_{i} that S_{i + 1} lacks")
    same(sets[-1], list(range(len(sources))), "the last set, which is all rows")
    assert all(rows == sorted(set(rows)) for rows in sets), "row numbers must rise, each once"


@pytest.mark.points(2)
def test_each_source_gets_its_share(student, rng):
    sources = ["long"] * 12 + ["short"] * 6 + ["long"] * rng.randint(6, 12)
    for i, rows in enumerate(student.training_sets(sources, 5), start=1):
        for source in ("long", "short"):
            own = [n for n, name in enumerate(sources) if name == source]
            yours = [n for n in rows if sources[n] == source]
            same(yours, own[:len(own) * i // 3], f'rows of source "{source}" in S_{i}')


@pytest.mark.points(2)
def test_initial_ranking(student, rng):
    K = rng.randint(4, 9)
    yours = list(student.best_first(K))
    same(sorted(yours), list(range(K)), "every answer once")
    same([yours[0], yours[-1]], [0, K - 1], "the best and the worst answer")
    assert all(a > b for a, b in zip(yours[1:-1], yours[2:-1])), f"which M_i has seen most? Your order is {yours}"
    with pytest.raises(ValueError):
        student.best_first(2)
