#include "hydra/optimizer.h"

#include <cmath>

namespace polyspan {

AdamW::AdamW(Parameters& parameters, AdamSettings settings)
    : parameters_(parameters), settings_(settings), counts_(parameters.tensors().size(), 0) {
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
    if (grad.defined()) squares.push_back((grad.is_sparse() ? grad._values() : grad).norm(2, torch::kFloat64).square());
    grads.push_back(grad);
  }
  const double norm = squares.empty() ? 0.0 : torch::stack(squares).sum().sqrt().item<double>();
  if (!std::isfinite(norm)) return norm;
  const double scale = settings_.clip > 0 && norm > settings_.clip ? settings_.clip / norm : 1.0;

  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i].defined()) continue;
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

}  // namespace polyspan
