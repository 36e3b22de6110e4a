"""Towards another network's outputs."""

import pytest
import torch
from torch import nn

from mvq.errors import ConfigError
from mvq.train import Distillation, Matching, finetune


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.9), nn.Linear(5, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def data(n: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(n)]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_value_is_the_formula(weight: float) -> None:
    teacher, student = Teacher(), Teacher().eval()
    with torch.no_grad():
        student.body[2].weight.add_(0.5)
    (x, y), *_ = data(1)
    loss = Distillation(teacher, temperature=2.0, weight=weight)(student, (x, y))
    assert teacher.training
    p, q = (torch.softmax(m(x) / 2, 1) for m in (teacher.eval(), student))
    kl = (p * (p.log() - q.log())).sum(1).mean()
    want = weight * 4 * kl + (1 - weight) * nn.functional.cross_entropy(student(x), y)
    assert torch.allclose(loss, want, atol=1e-6)


def test_a_student_learns_from_the_teacher_without_labels() -> None:
    teacher = Teacher()
    student = nn.Linear(6, 3)
    history = finetune(student, [x for x, _ in data()], epochs=8, lr=0.05, objective=Distillation(teacher, weight=1.0))
    assert history[-1].loss < 0.5 * history[0].loss
    assert all(p.grad is None for p in teacher.parameters())


def test_matching_is_a_loss_of_both_outputs() -> None:
    teacher, student = Teacher(), Teacher().eval()
    with torch.no_grad():
        student.body[2].weight.add_(0.5)
    (x, y), *_ = data(1)
    loss_fn = nn.functional.l1_loss
    found = [Matching(teacher, loss_fn)(student, batch) for batch in (x, (x, y), [x, [{}]])]
    assert teacher.training
    want = loss_fn(student(x), teacher.eval()(x))
    assert all(torch.equal(loss, want) for loss in found)
    found[0].backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_errors() -> None:
    with pytest.raises(ConfigError) as caught:
        Distillation(Teacher(), temperature=0, weight=1.5)
    assert str(caught.value) == (
        "Distillation: temperature=0 is not positive and finite\nDistillation: weight=1.5 is not in 0..1"
    )
