// hydra/torch.h: what the training component needs of LibTorch: tensors, their operations and gradients, devices. All of
// <torch/torch.h> (modules, optimisers, data loaders, none used here) takes half as long again to compile.
#pragma once

#include <torch/autograd.h>
#include <torch/cuda.h>
#include <torch/types.h>
#include <torch/utils.h>
#include <torch/version.h>
