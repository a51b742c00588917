"""RotoGrad as its paper writes it, in float64: one loop per formula, the rotations' loss by autograd, Adam by hand."""

import torch


class NaiveRotoGrad:
    """Heads by name; all tensors float64. Call `factors`, then `step` with the same gradients."""

    def __init__(self, heads, size, *, lr=1e-4, decay=0.99, burn_in=20):
        self.heads, self.lr, self.decay, self.burn_in = tuple(heads), lr, decay, burn_in
        self.generators = {head: torch.zeros(size, size, dtype=torch.float64) for head in heads}
        self.reference = {}
        self.count = 0
        self.first = {head: torch.zeros(size, size, dtype=torch.float64) for head in heads}
        self.second = {head: torch.zeros(size, size, dtype=torch.float64) for head in heads}
        self.times = dict.fromkeys(heads, 0)

    def rotation(self, head):
        """R from the eigenvectors of the skew-symmetric matrix."""
        skew = self.generators[head] - self.generators[head].T
        values, vectors = torch.linalg.eig(skew)
        return (vectors @ torch.diag(values.exp()) @ torch.linalg.inv(vectors)).real

    def _norms(self, rotated):
        return {
            head: float(sum((row @ row) for row in grad.double())) ** 0.5 for head, grad in rotated.items()
        }

    def factors(self, rotated):
        """Head → C/‖g‖, of head → (n, d) gradients with respect to the rotated features."""
        norms = self._norms(rotated)
        alphas = {}
        for head, norm in norms.items():
            is_new = head not in self.reference or self.count == self.burn_in
            alphas[head] = norm / (norm if is_new else self.reference[head])
        total = sum(alphas.values())
        common = sum(alpha / total * norms[head] for head, alpha in alphas.items())
        return {head: common / norm for head, norm in norms.items()}

    def directions(self, rotated):
        """Head → gradient of the rotations' loss with respect to its generator."""
        if len(rotated) < 2:
            return {}
        norms, factors = self._norms(rotated), self.factors(rotated)
        common = next(factors[head] * norms[head] for head in rotated)
        back = {head: grad.double() @ self.rotation(head) for head, grad in rotated.items()}
        mean = sum(factors[head] * grad for head, grad in back.items()) / len(back)
        found = {}
        for head, grad in rotated.items():
            generator = self.generators[head].clone().requires_grad_()
            rotation = torch.matrix_exp(generator - generator.T)
            loss = -((grad.double() @ rotation) * mean).sum() / (common * norms[head])
            (found[head],) = torch.autograd.grad(loss, generator)
        return found

    def apply(self, norms, directions):
        """Count a step and move the rotations."""
        for head, norm in norms.items():
            if head not in self.reference or self.count == self.burn_in:
                self.reference[head] = norm
        self.count += 1
        for head, grad in directions.items():
            self.times[head] += 1
            time = self.times[head]
            self.first[head] = 0.9 * self.first[head] + 0.1 * grad
            self.second[head] = 0.999 * self.second[head] + 0.001 * grad**2
            mean, spread = self.first[head] / (1 - 0.9**time), (self.second[head] / (1 - 0.999**time)).sqrt()
            self.generators[head] = self.generators[head] - self.lr * mean / (spread + 1e-8)

    def step(self, rotated):
        """One micro-batch is one step."""
        self.apply(self._norms(rotated), self.directions(rotated))

    def end_epoch(self):
        self.lr *= self.decay
