"""Each closed-form Gram method against its paper's algorithm on vectors; the others by their optimality conditions."""

import pytest
import scipy.optimize
import torch
from torchjd.aggregation import PCGradWeighting as TorchJDPCGrad

from perception.balancing import (
    LinearPacing,
    MCLGSWeighting,
    NashWeighting,
    PCGradWeighting,
    UniformPriority,
    WPCGradWeighting,
)
from perception.balancing._random import global_draws_from
from perception.balancing.gradvac import VaccineWeighting
from perception.balancing.torchjd_weighting import (
    aligned_mtl,
    cagrad,
    dualproj,
    fairgrad,
    imtl_g,
    mgda,
    upgrad,
)
from tests.balancing import cases, naive

NUM_CASES = 286
FULL_RANK = 1e-10
DEFICIENT = 1e-6
DUAL_CONE = 1e-3  # TorchJD adds 1e-4 to the diagonal of the scaled matrix


def wpcgrad_pair(mode):
    weighting = WPCGradWeighting(UniformPriority(), mode=mode)

    def run(matrix, seed):
        order = torch.randperm(len(matrix), generator=torch.Generator().manual_seed(seed)).tolist()
        found = weighting.weights_for_order(matrix @ matrix.T, order) @ matrix
        return found, naive.wpcgrad(matrix, order, mode).sum(0)

    return run


def pcgrad_pair(matrix, seed):
    found = cases.seeded(PCGradWeighting(), seed)(matrix @ matrix.T) @ matrix
    return found, naive.pcgrad(matrix, cases.orders_of(len(matrix), seed)[0])


def gradvac_pair(matrix, seed):
    method = cases.seeded(VaccineWeighting(beta=0.3), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    method.targets = torch.rand(len(matrix), len(matrix), dtype=torch.float64, generator=generator) - 0.5
    targets = method.targets.clone()
    found = method(matrix @ matrix.T) @ matrix
    expected = naive.gradvac(matrix, cases.orders_of(len(matrix), seed)[1], targets, 0.3)
    off_diagonal = ~torch.eye(len(matrix), dtype=torch.bool)
    assert torch.allclose(method.targets[off_diagonal], targets[off_diagonal], rtol=0, atol=1e-10)
    return found, expected


def mclgs_pair(matrix, seed):
    pace = float(seed % 50)
    return MCLGSWeighting(LinearPacing(pace, 0))(matrix @ matrix.T) @ matrix, naive.mclgs(matrix, pace)


CLOSED_FORM = {
    "wpcgrad": wpcgrad_pair("loop"),
    "wpcgrad anchor": wpcgrad_pair("anchor"),
    "pcgrad": pcgrad_pair,
    "gradvac": gradvac_pair,
    "mclgs": mclgs_pair,
    "imtl_g": lambda matrix, seed: (imtl_g()(matrix @ matrix.T) @ matrix, naive.imtl_g(matrix)),
    "aligned_mtl": lambda matrix, seed: (
        aligned_mtl()(matrix @ matrix.T) @ matrix,
        naive.aligned_mtl(matrix),
    ),
}


@pytest.mark.parametrize("method", CLOSED_FORM)
@pytest.mark.parametrize("num_cases", [NUM_CASES, pytest.param(2000, marks=pytest.mark.slow)])
def test_full_rank(method, num_cases):
    worst = 0.0
    for seed in range(num_cases):
        matrix = cases.draw(seed, size=24)
        found, expected = CLOSED_FORM[method](matrix, seed)
        worst = max(worst, cases.relative_error(found, expected, matrix))
    assert worst <= FULL_RANK


@pytest.mark.parametrize("method", ["wpcgrad", "wpcgrad anchor", "pcgrad", "gradvac", "mclgs"])
def test_rank_deficient(method):
    worst = 0.0
    for seed in range(50):
        # Of rank 1 all cosines are 1 or -1, where GradVac's target is a tie.
        matrix = cases.draw(seed, rank=max(1 + seed % 3, 2 if method == "gradvac" else 1))
        found, expected = CLOSED_FORM[method](matrix, seed)
        worst = max(worst, cases.relative_error(found, expected, matrix))
    assert worst <= DEFICIENT


def test_pcgrad_is_torchjds_and_tells_what_it_projected():
    for seed in range(50):
        matrix = cases.draw(seed)
        method = cases.seeded(PCGradWeighting(), seed)
        with global_draws_from(torch.Generator().manual_seed(seed)):
            expected = TorchJDPCGrad()(matrix @ matrix.T)
        found = method(matrix @ matrix.T)
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
        orders = cases.orders_of(len(matrix), seed)[0]
        assert torch.allclose(method.weights_for_orders(matrix @ matrix.T, orders), expected, rtol=1e-10)
        projected = []  # on vectors, with the signs that decide
        for task, order in enumerate(orders):
            gradient = matrix[task].clone()
            for other in order:
                product = gradient @ matrix[other]
                if product < 0:
                    gradient -= product / matrix[other].square().sum() * matrix[other]
                    projected.append([str(task), str(other)])
        assert method.report() == {"projected": projected}


def test_pcgrad_meets_a_zero_gradient_and_an_absent_task():
    gram = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 4.0]])
    method = cases.seeded(PCGradWeighting(), 0)
    assert method(gram).tolist() == [2.0, 1.0, 1.25]
    assert method.masked(gram, torch.tensor([True, False, True])).tolist() == [2.0, 0.0, 1.25]
    assert method.report() == {"projected": [["0", "2"], ["2", "0"]]}


def test_scales_that_differ_between_tasks():
    for seed in range(20):
        matrix = cases.draw(seed, low=0, high=0) * torch.logspace(-5, 5, 8, dtype=torch.float64)[seed % 8]
        matrix[0] *= 1e8
        for method in ("wpcgrad", "pcgrad", "mclgs"):
            found, expected = CLOSED_FORM[method](matrix, seed)
            assert cases.relative_error(found, expected, matrix) <= FULL_RANK


def test_aligned_and_impartial_updates_of_dependent_gradients_keep_their_size():
    # Rounding noise in the null space of G must not be taken for a direction.
    for seed in range(30):
        matrix = cases.draw(seed, num_tasks=4, rank=2)
        gram = matrix @ matrix.T
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        expected = (values[1] * left[:, :2] @ right[:2]).mean(0)
        assert cases.relative_error(aligned_mtl()(gram) @ matrix, expected, matrix) <= DEFICIENT
        found = imtl_g()(gram)
        v = torch.linalg.pinv(gram, rtol=1e-10, hermitian=True) @ gram.diagonal().sqrt()
        assert cases.relative_error(found @ matrix, v / v.sum() @ matrix, matrix) <= DEFICIENT * max(
            1, found.norm()
        )


def test_mgda_is_near_the_least_norm_in_the_hull():
    # Frank-Wolfe: the gap bounds the distance to the least squared norm.
    for seed in range(20):
        matrix = cases.draw(seed)
        gram = matrix @ matrix.T
        c = mgda()(gram)
        assert c.min() >= 0
        assert c.sum() == pytest.approx(1)
        gap = float(c @ gram @ c - (gram @ c).min())
        assert gap <= 0.05 * float(gram.diagonal().mean())
    exact = mgda(epsilon=1e-9, max_iters=20000)(torch.tensor([[1.0, -0.5], [-0.5, 2.0]], dtype=torch.float64))
    assert exact.tolist() == pytest.approx([2.5 / 4, 1.5 / 4], abs=1e-4)


def test_cagrad_is_at_its_optimum():
    # Dual: w minimises w G 1/T + c |g_0| |g_w|; so every task that w uses has the same, least derivative.
    for seed in range(8):
        matrix = cases.draw(seed, num_tasks=4, low=-9, high=9)
        gram = matrix @ matrix.T
        gram = gram / gram.diagonal().mean()
        c, number = 0.4, 4
        coefficients = cagrad(c=c)(matrix @ matrix.T)
        mean_norm = float(gram.sum().sqrt() / number)
        extra = coefficients - 1 / number
        w = extra / extra.sum()
        derivative = gram.sum(1) / number + c * mean_norm * gram @ w / (w @ gram @ w).sqrt()
        assert float((derivative * w).sum() - derivative.min()) <= 1e-4
        assert float((extra @ gram @ extra).sqrt()) == pytest.approx(c * mean_norm, rel=1e-6)


@pytest.mark.parametrize("method", [NashWeighting(max_norm=None), fairgrad()], ids=["nash", "fairgrad"])
def test_nash_solves_its_equation(method):
    for seed in range(20):
        matrix = cases.draw(seed, num_tasks=4)
        gram = matrix @ matrix.T
        c = method(gram)
        assert float((gram @ c * c - 1).abs().max()) <= (1e-8 if isinstance(method, NashWeighting) else 1e-5)


def test_nash_where_the_published_solver_returns_ones():
    gram = torch.tensor([[1, -0.5, 0.2], [-0.5, 1.25, -0.9], [0.2, -0.9, 1.68]], dtype=torch.float64)
    c = NashWeighting(max_norm=None)(gram)
    assert float((gram @ c * c - 1).abs().max()) <= 1e-10
    assert torch.allclose(c, fairgrad()(gram), rtol=1e-5)
    limited = NashWeighting()(gram)
    assert float(limited @ gram @ limited) == pytest.approx(1)
    assert torch.allclose(limited / limited.sum(), c / c.sum())


def project_on_dual_cone(gradient, matrix):
    """The nearest x with J x >= 0, by another solver: x = g + J^T w with the w >= 0 of least |x|."""
    scale = float(matrix.norm())
    weights, _ = scipy.optimize.nnls((matrix.T / scale).numpy(), (-gradient / scale).numpy(), maxiter=10_000)
    return gradient + torch.from_numpy(weights) @ matrix


def test_dual_cone_projections_are_the_nearest_points():
    for seed in range(40):
        matrix = cases.draw(seed, low=-9, high=9)
        gram = matrix @ matrix.T
        nearest = project_on_dual_cone(matrix.mean(0), matrix)
        assert cases.relative_error(dualproj()(gram) @ matrix, nearest, matrix) <= DUAL_CONE
        nearest = torch.stack([project_on_dual_cone(row, matrix) for row in matrix]).mean(0)
        assert cases.relative_error(upgrad()(gram) @ matrix, nearest, matrix) <= DUAL_CONE


def test_the_toy_problem_of_cagrad_nash_and_aligned_mtl():
    """Its losses and Gram matrix at (-8.5, 7.5), where the two agree."""
    x = torch.tensor([-8.5, 7.5], dtype=torch.float64, requires_grad=True)
    x1, x2 = x
    logs = [
        (0.5 * (-x1 - 7) - (-x2).tanh()).abs().clamp(min=5e-6).log() + 6,
        (0.5 * (-x1 + 3) + (-x2).tanh() + 2).abs().clamp(min=5e-6).log() + 6,
    ]
    quadratics = [((-x1 + sign * 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20 for sign in (1, -1)]
    gates = (x2 / 2).tanh().clamp(min=0), (-x2 / 2).tanh().clamp(min=0)
    losses = [gates[0] * first + gates[1] * second for first, second in zip(logs, quadratics, strict=True)]
    assert [loss.item() for loss in losses] == pytest.approx([6.552363, 7.900798], abs=1e-6)
    matrix = torch.stack([torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses])
    gram = matrix @ matrix.T
    assert gram.flatten().tolist() == pytest.approx([0.081505, 0.021181, 0.021181, 0.005551], abs=1e-6)
    assert PCGradWeighting()(gram).tolist() == [1, 1]
    assert WPCGradWeighting(UniformPriority(2))(gram).tolist() == [1, 1]
    assert mgda(epsilon=1e-9)(gram).tolist() == pytest.approx(
        [0, 1], abs=1e-3
    )  # the shorter one, inside the other's cone


def test_golden_numbers_of_torchjd():
    matrix = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], dtype=torch.float64)
    gram = matrix @ matrix.T
    expected = {
        "aligned_mtl": (aligned_mtl(), (0.2133, 0.9673, 0.9673)),
        "pcgrad": (PCGradWeighting(), (0.5848, 3.8012, 3.8012)),
        "gradvac": (VaccineWeighting(), (0.5848, 3.8012, 3.8012)),
        "imtl_g": (imtl_g(), (0.0767, 1.0, 1.0)),
        "mgda": (mgda(), (0.0, 1.0, 1.0)),
        "cagrad": (cagrad(c=0.5), (0.1835, 1.2041, 1.2041)),
        "nash": (NashWeighting(), (0.0542, 0.7061, 0.7061)),
        "upgrad": (upgrad(), (0.2929, 1.9004, 1.9004)),
        "dualproj": (dualproj(), (0.5563, 1.1109, 1.1109)),
        "fairgrad": (fairgrad(), (0.0766, 0.9985, 0.9985)),
    }
    for name, (method, update) in expected.items():
        assert (method(gram) @ matrix).tolist() == pytest.approx(
            update, abs=1e-3 if name == "mgda" else 1e-4
        ), name


def test_pcgrad_equals_upgrads_sum_for_two_tasks():
    for seed in range(20):
        gram = cases.draw(seed, num_tasks=2)
        gram = gram @ gram.T
        assert torch.allclose(PCGradWeighting()(gram), 2 * upgrad()(gram), rtol=1e-3)
