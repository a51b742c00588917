"""Gram methods of TorchJD: scaled and masked."""

from typing import Literal

from torch import Tensor
from torchjd.aggregation import (
    AlignedMTLWeighting,
    CAGradWeighting,
    DualProjWeighting,
    FairGradWeighting,
    IMTLGWeighting,
    MGDAWeighting,
    UPGradWeighting,
    Weighting,
)

from perception.balancing.component import Convention
from perception.balancing.gram_weighting import GramWeighting, scale_of


class TorchJDWeighting(GramWeighting):
    """One of TorchJD's weightings on G divided by the mean squared norm, so that its thresholds fit any scale.

    Args:
        inner: the weighting; its coefficients behave like G^-degree when G is scaled.
        convention: what its coefficients for tasks without conflict are.
        degree: 0 for all but Nash's kind.
    """

    def __init__(self, inner: Weighting, *, convention: Convention, degree: float = 0.0) -> None:
        super().__init__()
        self.inner = inner
        self.convention = convention
        self.degree = degree

    def _solve(self, gram: Tensor, task_idx: Tensor) -> Tensor:
        scale = scale_of(gram)
        return self.inner(gram / scale) * scale**-self.degree


def mgda(*, epsilon: float = 1e-3, max_iters: int = 100) -> TorchJDWeighting:
    """MGDA: Sener and Koltun 2018, Algorithm 2; the point of least norm in the hull, by Frank–Wolfe.

    Args:
        epsilon: step below which the iteration ends.
        max_iters: most iterations. Frank–Wolfe converges slowly: with the defaults, TorchJD's, the squared norm is
            typically within 2 % of the mean squared norm of the least.
    """
    return TorchJDWeighting(MGDAWeighting(epsilon=epsilon, max_iters=max_iters), convention="mean")


def cagrad(*, c: float = 0.4, norm_eps: float = 1e-4) -> TorchJDWeighting:
    """CAGrad: Liu et al. 2021, Algorithm 1, not rescaled; solved by CLARABEL.

    Args:
        c: radius of the ball around the mean gradient, in its norm; 0.4 on NYUv2.
            The solver's optimum is met to 1e-4 of the mean squared norm (tested), the radius to 1e-6.
        norm_eps: norm of the combination, of gradients of mean squared norm 1, below which the point counts as
            Pareto-stationary and the update is 0.
    """
    return TorchJDWeighting(CAGradWeighting(c=c, norm_eps=norm_eps), convention="mean")


def aligned_mtl(*, scale_mode: Literal["min", "median", "rmse"] = "min") -> TorchJDWeighting:
    """Aligned-MTL: Senushkin et al. 2023, Algorithm 1; gradients turned orthogonal and of one length.

    Args:
        scale_mode: common length: least, median or mean singular value.
    """
    return TorchJDWeighting(AlignedMTLWeighting(scale_mode=scale_mode), convention="mean")


def imtl_g() -> TorchJDWeighting:
    """IMTL-G: Liu et al. 2021; the combination whose projections on all task gradients are equal."""
    return TorchJDWeighting(IMTLGWeighting(), convention="mean")


def upgrad() -> TorchJDWeighting:
    """UPGrad: Quinton and Rey 2024; each gradient projected on the cone where no task gets worse, then the mean."""
    return TorchJDWeighting(UPGradWeighting(), convention="mean")


def dualproj() -> TorchJDWeighting:
    """DualProj: Lopez-Paz and Ranzato 2017, Eq. 11 (GEM); the mean gradient projected on that cone."""
    return TorchJDWeighting(DualProjWeighting(), convention="mean")


def fairgrad(*, alpha: float = 1.0, max_iters: int | None = None) -> TorchJDWeighting:
    """FairGrad: Ban and Ji 2024, Eq. 4: G c = c^(-1/alpha), by least squares.

    Args:
        alpha: kind of fairness; 0 is the mean, 1 is Nash-MTL without its limit on the norm.
        max_iters: most evaluations of the solver, which meets the equation to 1e-5 with alpha 1 (tested).
    """
    degree = alpha / (1 + alpha)
    return TorchJDWeighting(
        FairGradWeighting(alpha=alpha, max_iters=max_iters), convention="sum", degree=degree
    )
