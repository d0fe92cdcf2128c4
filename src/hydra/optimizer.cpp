#include "hydra/optimizer.h"

#include <cmath>

// LibTorch 2.4 and later step all tensors in one kernel. A CPU keeps the plain form: its runs repeat to the bit.
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 4)
#define POLYSPAN_HAS_FUSED_ADAMW 1
#endif

namespace polyspan {

AdamW::AdamW(Parameters& parameters, AdamSettings settings)
    : parameters_(parameters), settings_(settings), counts_(parameters.tensors().size(), 0) {
#ifdef POLYSPAN_HAS_FUSED_ADAMW
  fused_ = settings.fused && !parameters.tensors().empty() && parameters.tensors()[0].is_cuda();
#endif
  for (const torch::Tensor& tensor : parameters.tensors()) {
    m_.push_back(torch::zeros_like(tensor.detach()));
    v_.push_back(torch::zeros_like(tensor.detach()));
  }
}

void AdamW::drop_gradients() {
  for (const torch::Tensor& tensor : parameters_.tensors()) tensor.mutable_grad() = torch::Tensor();
}

double AdamW::step(double lr) {
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> grads,
      squares;  // the squares stay on the device until all are summed: one wait, not one each
  for (const torch::Tensor& tensor : parameters_.tensors()) {
    torch::Tensor grad = tensor.grad();
    if (grad.defined() && grad.is_sparse()) grad = grad.coalesce();
    if (grad.defined() && (grad.is_sparse() || !fused_))
      squares.push_back((grad.is_sparse() ? grad._values() : grad).norm(2, torch::kFloat64).square());
    grads.push_back(grad);
  }
  if (fused_) add_squares(grads, squares);
  const double norm = squares.empty() ? 0.0 : torch::stack(squares).sum().sqrt().item<double>();
  if (!std::isfinite(norm)) return norm;
  const double scale = settings_.clip > 0 && norm > settings_.clip ? settings_.clip / norm : 1.0;

  if (fused_) step_dense_fused(grads, lr, scale);
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i].defined() || (fused_ && !grads[i].is_sparse())) continue;
    const TensorSpec& spec = parameters_.specs()[i];
    const torch::Tensor& value = parameters_.tensors()[i];
    const double t = static_cast<double>(++counts_[i]);
    const double correction1 = 1 - std::pow(settings_.beta1, t), correction2 = 1 - std::pow(settings_.beta2, t);
    const double rate = spec.name.ends_with("pkm_values") ? lr * settings_.value_lr_scale : lr;
    const auto moved = [&](const torch::Tensor& m, const torch::Tensor& v) {
      return m / ((v / correction2).sqrt_().add_(settings_.eps)) * (-rate / correction1);
    };
    if (grads[i].is_sparse()) {
      const torch::Tensor rows = grads[i]._indices()[0], grad = grads[i]._values() * scale;
      const torch::Tensor m = m_[i].index_select(0, rows) * settings_.beta1 + grad * (1 - settings_.beta1);
      const torch::Tensor v = v_[i].index_select(0, rows) * settings_.beta2 + grad.square() * (1 - settings_.beta2);
      m_[i].index_copy_(0, rows, m);
      v_[i].index_copy_(0, rows, v);
      torch::Tensor(value).index_add_(0, rows, moved(m, v));
    } else {
      const torch::Tensor grad = grads[i] * scale;
      m_[i].mul_(settings_.beta1).add_(grad, 1 - settings_.beta1);
      v_[i].mul_(settings_.beta2).addcmul_(grad, grad, 1 - settings_.beta2);
      if (spec.decays) torch::Tensor(value).mul_(1 - rate * settings_.weight_decay);
      torch::Tensor(value).add_(moved(m_[i], v_[i]));
    }
  }
  drop_gradients();
  return norm;
}

#ifdef POLYSPAN_HAS_FUSED_ADAMW
void AdamW::add_squares(const std::vector<torch::Tensor>& grads, std::vector<torch::Tensor>& squares) const {
  std::vector<torch::Tensor> dense;
  for (const torch::Tensor& grad : grads)
    if (grad.defined() && !grad.is_sparse()) dense.push_back(grad);
  if (!dense.empty()) squares.push_back(torch::stack(at::_foreach_norm(dense, 2)).to(torch::kFloat64).square().sum());
}

void AdamW::step_dense_fused(const std::vector<torch::Tensor>& grads, double lr, double scale) {
  struct Group {
    std::vector<torch::Tensor> values, grads, m, v, counts;
  } groups[2];  // without and with weight decay
  std::vector<float> counts;
  for (size_t i = 0; i < grads.size(); ++i) {
    const bool dense = grads[i].defined() && !grads[i].is_sparse();
    counts.push_back(dense ? static_cast<float>(++counts_[i]) : 0);
  }
  if (grads.empty()) return;
  const torch::Device device = parameters_.tensors()[0].device();
  const std::vector<torch::Tensor> count_of = torch::tensor(at::ArrayRef<float>(counts)).to(device).unbind();
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i].defined() || grads[i].is_sparse()) continue;
    Group& group = groups[parameters_.specs()[i].decays ? 1 : 0];
    group.values.push_back(parameters_.tensors()[i]);
    group.grads.push_back(grads[i].contiguous());
    group.m.push_back(m_[i]);
    group.v.push_back(v_[i]);
    group.counts.push_back(count_of[i]);
  }
  for (int decays = 0; decays < 2; ++decays) {
    Group& group = groups[decays];
    if (group.values.empty()) continue;
    if (scale != 1.0) at::_foreach_mul_(group.grads, scale);
    at::_fused_adamw_(group.values, group.grads, group.m, group.v, {}, group.counts, lr, settings_.beta1,
                      settings_.beta2, decays == 1 ? settings_.weight_decay : 0.0, settings_.eps, /*amsgrad=*/false,
                      /*maximize=*/false);
  }
}
#else
void AdamW::add_squares(const std::vector<torch::Tensor>&, std::vector<torch::Tensor>&) const {}
void AdamW::step_dense_fused(const std::vector<torch::Tensor>&, double, double) {}
#endif

}  // namespace polyspan
