#include "hydra/processes.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <cstdlib>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"

#ifdef POLYSPAN_HAS_GLOO
#ifndef USE_C10D_GLOO  // which the header wants to see
#define USE_C10D_GLOO
#endif
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#endif
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace polyspan {
namespace {

std::optional<int64_t> number_in_environment(const char* key) {
  const char* const text = std::getenv(key);
  if (text == nullptr) return std::nullopt;
  const std::string_view digits(text);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size() || value < 0 || value > 65535)
    throw Error::bad_input("the environment's ", key, " is \"", digits, "\"; wanted a number");
  return value;
}

class Alone final : public Processes {
 public:
  Alone() : Processes(0, 1) {}
  torch::Tensor sum(const torch::Tensor& x) override { return x; }
};

// Where the processes find each other; the first one keeps it.
c10::intrusive_ptr<c10d::Store> meet(int64_t rank, int64_t size, const std::string& host, int64_t port) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(port);
  options.isServer = rank == 0;
  options.numWorkers = static_cast<size_t>(size);
  options.timeout = std::chrono::seconds(120);
  return c10::make_intrusive<c10d::TCPStore>(host, options);
}

#ifdef POLYSPAN_HAS_GLOO
class GroupOfProcesses final : public Processes {
 public:
  GroupOfProcesses(int64_t rank, int64_t size, const std::string& host, int64_t port) : Processes(rank, size) {
    const auto options = c10d::ProcessGroupGloo::Options::create(std::chrono::minutes(30));
    options->devices.push_back(host == "127.0.0.1" ? c10d::ProcessGroupGloo::createDeviceForHostname(host)
                                                   : c10d::ProcessGroupGloo::createDefaultDevice());
    group_ = c10::make_intrusive<c10d::ProcessGroupGloo>(meet(rank, size, host, port), static_cast<int>(rank),
                                                         static_cast<int>(size), options);
  }
  torch::Tensor sum(const torch::Tensor& x) override {
    std::vector<torch::Tensor> host = {x.detach().to(torch::kCPU, /*non_blocking=*/false, /*copy=*/true).contiguous()};
    try {
      group_->allreduce(host)->wait();
    } catch (const std::exception& error) {
      throw Error::io("processes", "another process of the run has gone: ", error.what());
    }
    return host[0].to(x.device());
  }

 private:
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
};
#else
// Without Gloo's headers, as with a pip-installed LibTorch: each leaves its part in the store and adds up all of them in the
// order of the ranks. What the first process has to carry grows with the square of their number.
class GroupOfProcesses final : public Processes {
 public:
  GroupOfProcesses(int64_t rank, int64_t size, const std::string& host, int64_t port)
      : Processes(rank, size), store_(meet(rank, size, host, port)) {
    store_->setTimeout(std::chrono::minutes(30));
  }
  torch::Tensor sum(const torch::Tensor& x) override {
    const torch::Tensor own = x.detach().to(torch::kCPU).contiguous();
    const uint8_t* const bytes = static_cast<const uint8_t*>(own.data_ptr());
    torch::Tensor total = torch::zeros_like(own);
    try {
      store_->set(key(n_sums_, rank_), std::vector<uint8_t>(bytes, bytes + own.nbytes()));
      for (int64_t rank = 0; rank < size_; ++rank) {
        std::vector<uint8_t> part = store_->get(key(n_sums_, rank));  // waits for it
        POLYSPAN_CHECK(part.size() == own.nbytes(), "the processes add up different things");
        total += torch::from_blob(part.data(), own.sizes(), own.options());
      }
      if (n_sums_ > 0)
        store_->deleteKey(key(n_sums_ - 1, rank_));  // all have begun this sum, so all have read the last
    } catch (const c10::Error& error) {
      throw Error::io("processes", "another process of the run has gone: ", error.what_without_backtrace());
    }
    ++n_sums_;
    return total.to(x.device());
  }

 private:
  static std::string key(int64_t n, int64_t rank) { return std::to_string(n) + "/" + std::to_string(rank); }
  c10::intrusive_ptr<c10d::Store> store_;
  int64_t n_sums_ = 0;
};
#endif

}  // namespace

bool among_processes() { return number_in_environment("WORLD_SIZE").value_or(1) > 1; }

std::unique_ptr<Processes> Processes::from_environment() {
  const int64_t size = number_in_environment("WORLD_SIZE").value_or(1);
  if (size <= 1) return std::make_unique<Alone>();
  const int64_t rank = number_in_environment("RANK").value_or(0);
  if (rank >= size) throw Error::bad_input("this process is number ", rank, " of ", size, "; they count from 0");
  const char* const master = std::getenv("MASTER_ADDR");
  const std::string host = master != nullptr ? master : "127.0.0.1";
  // torchrun keeps a store of its own at that port, in the words of its own version of LibTorch: ours is the next one.
  const bool taken = std::getenv("TORCHELASTIC_USE_AGENT_STORE") != nullptr;
  const int64_t port = number_in_environment("MASTER_PORT").value_or(29500) + taken;
  try {
    return std::make_unique<GroupOfProcesses>(rank, size, host, port);
  } catch (const std::exception& error) {
    throw Error::io("processes", "the ", size, " processes of the run did not find each other at ", host, ":", port,
                    ": ", error.what());
  }
}

double Processes::sum(double x) { return size_ == 1 ? x : sum(torch::full({1}, x, torch::kFloat64)).item<double>(); }

void Processes::sum_gradients(Parameters& parameters) {
  if (size_ == 1) return;
  for (const torch::Tensor& tensor : parameters.tensors()) {
    // A gradient that only some have (of experts that nobody chose here, say) is zero for the others.
    const torch::Tensor grad = tensor.grad();
    const bool sparse = grad.defined() && grad.is_sparse();
    const double n_sparse = sum(sparse ? 1.0 : 0.0), n_dense = sum(grad.defined() && !sparse ? 1.0 : 0.0);
    if (n_sparse + n_dense == 0) continue;
    const torch::Tensor dense = !grad.defined() ? torch::zeros_like(tensor.detach()) : sparse ? grad.to_dense() : grad;
    const torch::Tensor total = sum(dense);
    if (n_sparse == 0) {
      tensor.mutable_grad() = total;
      continue;
    }
    torch::Tensor touched = torch::zeros({tensor.size(0)}, torch::kFloat32);
    if (sparse) touched.index_fill_(0, grad.coalesce()._indices()[0].to(torch::kCPU), 1.0);
    const torch::Tensor rows = sum(touched).nonzero().squeeze(-1).to(tensor.device());
    tensor.mutable_grad() = torch::sparse_coo_tensor(rows.unsqueeze(0), total.index_select(0, rows), tensor.sizes());
  }
}

namespace {

// Whether a child has ended; it is still to be waited for.
bool has_ended(pid_t child) {
  siginfo_t info{};
  return waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == child;
}

}  // namespace

int start_processes(int64_t n, char** argv) {
  // A port that is free now: rank 0 listens there.
  const int socket_fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (socket_fd < 0 || bind(socket_fd, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      getsockname(socket_fd, reinterpret_cast<sockaddr*>(&address), &length) != 0)
    throw Error::io("processes", "no port could be had for them to meet at");
  close(socket_fd);

  std::vector<pid_t> children;
  const pid_t parent = getpid();
  for (int64_t rank = 0; rank < n; ++rank) {
    const pid_t child = fork();
    if (child < 0) break;
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGTERM);  // none outlives the one that was started
      if (getppid() != parent) _exit(1);
      setenv("RANK", std::to_string(rank).c_str(), 1);
      setenv("WORLD_SIZE", std::to_string(n).c_str(), 1);
      setenv("MASTER_ADDR", "127.0.0.1", 1);
      setenv("MASTER_PORT", std::to_string(ntohs(address.sin_port)).c_str(), 1);
      execv("/proc/self/exe", argv);
      _exit(127);
    }
    children.push_back(child);
  }
  const pid_t first = children.empty() ? -1 : children[0];
  int first_failure = std::ssize(children) == n ? 0 : 1;
  const auto end_all = [&] {
    for (const pid_t child : children) kill(child, SIGTERM);
  };
  if (first_failure != 0) end_all();
  for (size_t left = children.size(); left > 0; --left) {
    int status = 0;
    const pid_t ended = waitpid(-1, &status, 0);
    if (ended < 0) break;
    std::erase(children, ended);
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (code == 0 || first_failure != 0) continue;
    first_failure = code;
    // What is wrong for all of them the first one says: it has five seconds for that.
    for (int i = 0; i < 100 && left > 1 && !has_ended(first); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    end_all();
  }
  return first_failure;
}

}  // namespace polyspan
