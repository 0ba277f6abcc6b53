"""Small exported programs with token selection written by hand, as a rewrite leaves them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

sdpa = nn.functional.scaled_dot_product_attention


def select(scores: Tensor, keep: int) -> Tensor:
    """Indices [B, keep] of the highest scores [B, N], ascending; ties to the lower index."""
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    return torch.sort(order[:, :keep], dim=1).values


def gather(x: Tensor, indices: Tensor) -> Tensor:
    """Rows [B, K, C] of x [B, N, C]."""
    return x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def restore(x: Tensor, indices: Tensor, size: int) -> Tensor:
    """Scatter rows [B, K, C] back to [B, size, C]; zeros elsewhere."""
    zeros = x.new_zeros(x.shape[0], size, x.shape[2])
    return zeros.scatter(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[2]), x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the new tokens and the first token's attention to every token [B, N]."""
        batch, tokens, width = x.shape
        heads = self.qkv(self.before(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = sdpa(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        scale = (width // self.heads) ** -0.5
        mass = torch.softmax(q[:, :, :1] @ k.transpose(2, 3) * scale, -1).mean(1).squeeze(1)
        x = x + self.out(mixed)
        return x + self.mlp(self.after(x)), mass


class PrunedVit(nn.Module):
    """A ViT with a class token that drops patches after its first block and restores them."""

    def __init__(self, image: int = 32, keep: int = 6, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.keep, self.patches = keep, (image // 8) ** 2
        self.embed = nn.Conv2d(3, width, 8, stride=8)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, self.patches + 1, width))
        self.first, self.second = Block(width, heads), Block(width, heads)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        x = self.embed(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        x, mass = self.first(x)
        kept = select(mass[:, 1:], self.keep)
        x = torch.cat([x[:, :1], gather(x[:, 1:], kept)], 1)
        x, _ = self.second(x)
        return {
            "pooled": x[:, 0],
            "features": restore(x[:, 1:], kept, self.patches),
            "trace.kept": kept,
        }


def pruned_vit(batch: int | None = None) -> ExportedProgram:
    """Fixed ``batch``, or a dynamic one (None)."""
    torch.manual_seed(0)
    model = PrunedVit().eval()
    shapes = {"pixel_values": {0: Dim("n", min=1, max=64)}} if batch is None else None
    inputs = {"pixel_values": torch.randn(batch or 2, 3, 32, 32)}
    with torch.no_grad():
        return export(model, (), inputs, dynamic_shapes=shapes).run_decompositions({})


class Small(nn.Module):
    """One linear layer and a selection: for tests that are about files."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(x) * mask.unsqueeze(1), select(x, 2)


def small() -> ExportedProgram:
    """Inputs ``x`` float32 [batch, 4] and ``mask`` bool [batch], batch from 1 to 8."""
    torch.manual_seed(0)
    n = Dim("n", min=1, max=8)
    x = torch.randn(4, 2).T  # recorded strides that the runtime's inputs do not have
    inputs = {"x": x, "mask": torch.ones(2, dtype=torch.bool)}
    with torch.no_grad():
        shapes = {"x": {0: n}, "mask": {0: n}}
        exported = export(Small().eval(), (), inputs, dynamic_shapes=shapes)
    return without_asserts(exported).run_decompositions({})


def without_asserts(exported: ExportedProgram) -> ExportedProgram:
    """Remove, in place, assertions and what only fed them, as the loader does."""
    graph = exported.graph_module.graph
    for node in reversed(list(graph.nodes)):
        checks = node.op == "call_function" and "_assert" in str(node.target)
        feeds = node.op == "call_function" and not node.users
        if checks or feeds:
            graph.erase_node(node)
    exported.graph_module.recompile()
    return exported
