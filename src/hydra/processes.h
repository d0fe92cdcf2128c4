// hydra/processes.h: one training run in several processes: each works on its share of every batch's sequences, and what
// they find is added up (c10d: Gloo where its headers are there, else c10d's store). The steps are those of one process, but for the order of sums.
#pragma once

#include "hydra/torch.h"

#include <cstdint>
#include <functional>
#include <memory>

#include "hydra/parameters.h"

namespace polyspan {

class Processes {
 public:
  // What torchrun or start_processes say in the environment: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT. Waits for the
  // others. Without them: one process, alone.
  // Throws Error: kBadInput (numbers that are none), kIo (the others do not come).
  static std::unique_ptr<Processes> from_environment();
  virtual ~Processes() = default;

  int64_t rank() const { return rank_; }
  int64_t size() const { return size_; }
  bool is_first() const { return rank_ == 0; }
  // The sum over the processes, the same bits in each; `x` itself when alone. Every process must call it.
  virtual torch::Tensor sum(const torch::Tensor& x) = 0;
  double sum(double x);
  // Every gradient becomes the sum over the processes; a sparse one stays sparse, with the rows of all.
  void sum_gradients(Parameters& parameters);

 protected:
  Processes(int64_t rank, int64_t size) : rank_(rank), size_(size) {}
  int64_t rank_, size_;
};

// Runs `n` copies of this program with its own arguments, as the processes of one run on this machine, and waits. Where one
// fails the others are ended. Returns 0 or the first failure's exit status.
int start_processes(int64_t n, char** argv);
// Whether from_environment would find others.
bool among_processes();

}  // namespace polyspan
