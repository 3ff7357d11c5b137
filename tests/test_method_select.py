"""Selections against plain loops, and on clusters whose representatives are known."""

import pytest
import torch
from sklearn.cluster import KMeans

from ddlib.method.select import SELECT, representative
from ddlib.settings import generator

CENTRES = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])


def clusters(each=15):
    """Four groups far apart, mixed; the group of each point."""
    group = torch.randperm(4 * each, generator=generator("mix")) % 4
    return CENTRES[group] + torch.randn(4 * each, 2, generator=generator("points")), group


def cloud(n=40, d=6):
    return torch.randn(n, d, generator=generator("cloud"))


def herding(points, count):
    mean, taken = points.mean(0), []
    for _ in range(count):
        free = [i for i in range(len(points)) if i not in taken]
        taken.append(min(free, key=lambda i: float((points[[*taken, i]].mean(0) - mean).norm())))
    return taken


def k_center(points, count):
    taken = [min(range(len(points)), key=lambda i: float((points[i] - points.mean(0)).norm()))]
    while len(taken) < count:
        taken.append(
            max(
                range(len(points)),
                key=lambda i: min(float((points[i] - points[j]).norm()) for j in taken),
            )
        )
    return taken


@pytest.mark.parametrize("count", [1, 2, 7, 40])
@pytest.mark.parametrize("plain", [herding, k_center])
def test_greedy_selections_are_their_plain_loops(plain, count):
    points = cloud()
    assert SELECT[plain.__name__](points, count, generator("g")).tolist() == plain(
        points.double(), count
    )


def test_representative_takes_the_point_nearest_to_each_centre():
    points, group = clusters()
    taken = representative(points, 4, generator("g")).tolist()
    assert sorted(group[taken].tolist()) == [0, 1, 2, 3]
    for i in taken:
        mine = (group == group[i]).nonzero().flatten().tolist()
        mean = points[mine].mean(0)
        assert i == min(mine, key=lambda j: float((points[j] - mean).norm()))


@pytest.mark.parametrize(
    "count, centres", [(8, 4), (12, 4), (6, 2), (5, 1), (7, 7), (40, 4)]
)  # (40, 4): a small cluster must take from its neighbours
def test_representative_takes_the_nearest_few_around_fewer_centres(count, centres):
    points = cloud()
    taken = representative(points, count, generator("g"), centres).tolist()
    assert len(set(taken)) == count
    seed = int(torch.randint(2**31 - 1, (), generator=generator("g")))
    means = (
        KMeans(centres, n_init=10, random_state=seed).fit(points.double().numpy()).cluster_centers_
    )
    expected = []
    for mean in torch.from_numpy(means):
        free = [i for i in range(len(points)) if i not in expected]
        expected += sorted(free, key=lambda i: float((points[i].double() - mean).norm()))[
            : count // centres
        ]
    assert taken == expected


def test_centres_come_with_as_many_as_images_where_nobody_says_otherwise():
    points = cloud()
    assert (
        representative(points, 5, generator("g")).tolist()
        == representative(points, 5, generator("g"), 5).tolist()
    )
    assert (
        representative(points, 6, generator("g")).tolist()
        != representative(points, 6, generator("g"), 2).tolist()
    )


@pytest.mark.parametrize("name", SELECT)
@pytest.mark.parametrize("count", [1, 3, 40])
def test_counts_and_no_repeats(name, count):
    taken = SELECT[name](cloud(), count, generator("g"))
    assert taken.shape == (count,) and taken.dtype == torch.int64
    assert len(set(taken.tolist())) == count and taken.min() >= 0 and taken.max() < 40


@pytest.mark.parametrize("name", ["herding", "k_center", "representative"])
def test_the_order_of_the_images_does_not_matter(name):
    points, _ = clusters()
    order = torch.randperm(len(points), generator=generator("other order"))
    straight, mixed = (SELECT[name](p, 4, generator("g")) for p in (points, points[order]))
    assert set(straight.tolist()) == set(order[mixed].tolist())


def test_real_is_chance_and_nothing_else():
    one, again, other = (
        SELECT["real"](cloud(), 5, generator("g", seed)).tolist() for seed in (0, 0, 1)
    )
    assert one == again != other
    counts = torch.zeros(40)
    for seed in range(400):
        counts[SELECT["real"](cloud(), 4, generator("fair", seed))] += 1
    assert counts.min() > 15 and counts.max() < 75  # 40 on average
