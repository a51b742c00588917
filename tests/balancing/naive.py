"""The papers' algorithms on vectors, written for the tests alone: J is (T, n), the result the update (n,)."""

import torch


def wpcgrad(matrix, order, mode="loop"):
    """wPCGrad, Algorithm 2, projecting on the current g_i^PC; an anchor of which nothing is left is skipped."""
    current = [row.clone() for row in matrix]
    for anchor in order if mode == "loop" else order[:1]:
        if current[anchor] @ current[anchor] <= 1e-12 * (matrix[anchor] @ matrix[anchor]):
            continue
        for task in range(len(matrix)):
            product = current[anchor] @ current[task]
            if task != anchor and product < 0:
                current[task] = (
                    current[task] - product / (current[anchor] @ current[anchor]) * current[anchor]
                )
    return torch.stack(current)


def pcgrad(matrix, orders):
    """PCGrad, Algorithm 1 (wPCGrad's Algorithm 1): orders[i] are the others that task i meets."""
    total = torch.zeros_like(matrix[0])
    for task, order in enumerate(orders):
        current = matrix[task].clone()
        for other in order:
            product = current @ matrix[other]
            if product < 0:
                current = current - product / (matrix[other] @ matrix[other]) * matrix[other]
        total = total + current
    return total


def gradvac(matrix, orders, targets, beta):
    """GradVac, Algorithm 1; changes `targets` (T, T) in place."""
    total = torch.zeros_like(matrix[0])
    for task, order in enumerate(orders):
        current = matrix[task].clone()
        for other in order:
            cosine = current @ matrix[other] / (current.norm() * matrix[other].norm())
            target = targets[task, other].clone()
            if cosine < target:
                numerator = current.norm() * (
                    target * (1 - cosine**2).sqrt() - cosine * (1 - target**2).sqrt()
                )
                current = (
                    current + numerator / (matrix[other].norm() * (1 - target**2).sqrt()) * matrix[other]
                )
            targets[task, other] = (1 - beta) * target + beta * cosine
        total = total + current
    return total


def mclgs(matrix, pace):
    """MCLGS, Eq. 4 with Eqs. 5 and 6."""
    number = len(matrix)
    total = torch.zeros_like(matrix[0])
    for i in range(number - 1):
        for j in range(i + 1, number):
            similarity = matrix[i] @ matrix[j] / (matrix[i].norm() * matrix[j].norm())
            total = total + (torch.tanh(similarity * pace) + 1) * (matrix[i] + matrix[j])
    return total / (number * (number - 1))


def imtl_g(matrix):
    """IMTL-G by differences of gradients and of unit gradients, as in its paper."""
    units = matrix / matrix.norm(dim=1, keepdim=True)
    differences, unit_differences = matrix[:1] - matrix[1:], units[:1] - units[1:]
    rest = torch.linalg.solve((differences @ unit_differences.T).T, unit_differences @ matrix[0])
    return torch.cat([1 - rest.sum().reshape(1), rest]) @ matrix


def aligned_mtl(matrix):
    """Aligned-MTL: singular values replaced by the least one; mean of the rows."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (values[-1] * left @ right).mean(0)
