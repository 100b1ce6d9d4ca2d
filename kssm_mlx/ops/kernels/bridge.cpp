// Runs functions compiled from the C++ dialect as nodes of MLX's graph: lazy, on the CPU's stream, also inside
// mx.compile. Lanes are shared out among threads; no two write the same element, so the result does not
// depend on how many there are.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/primitives.h"

namespace mx = mlx::core;

// Lanes first <= lane < last of a kernel; `arrays` are its inputs, then its outputs.
using Function = void (*)(int first, int last, void** arrays);

class Lanes : public mx::Primitive {
 public:
  Lanes(mx::Stream stream, Function function, int lanes, int together, int threads)
      : mx::Primitive(stream), function_(function), lanes_(lanes), together_(together), threads_(threads) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    std::vector<void*> arrays;
    for (const auto& x : inputs) {
      encoder.set_input_array(x);
      arrays.push_back(const_cast<char*>(x.data<char>()));
    }
    for (auto& y : outputs) {
      y.set_data(mx::allocator::malloc(y.nbytes()));
      encoder.set_output_array(y);
      arrays.push_back(y.data<char>());
    }
    encoder.dispatch([arrays, function = function_, lanes = lanes_, together = together_, threads = threads_]() mutable {
      // Never destroyed: its threads outlive the static objects of the process.
      static Team* team = new Team;
      const int groups = (lanes + together - 1) / together, most = threads > 1 ? 4 * threads : 1;
      const int pieces = groups < most ? groups : most;
      if (pieces <= 1) return function(0, lanes, arrays.data());
      team->run(threads, pieces, [&](int i) {
        const int first = int(int64_t(groups) * i / pieces) * together;
        const int last = int(int64_t(groups) * (i + 1) / pieces) * together;
        function(first, last < lanes ? last : lanes, arrays.data());
      });
    });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("this kernel was made for the CPU");
  }
  const char* name() const override { return "KssmLanes"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const Lanes&>(other);
    return o.function_ == function_ && o.lanes_ == lanes_;
  }

 private:
  Function function_;
  int lanes_, together_, threads_;
};

std::vector<mx::array> run(
    uintptr_t function,
    int lanes,
    int together,
    int threads,
    const std::vector<mx::array>& inputs,
    const std::vector<std::vector<int>>& outputs) {
  std::vector<mx::Shape> shapes;
  for (const auto& shape : outputs) shapes.emplace_back(shape.begin(), shape.end());
  const std::vector<mx::Dtype> dtypes(shapes.size(), mx::float32);
  auto primitive = std::make_shared<Lanes>(
      mx::default_stream(mx::Device::cpu), reinterpret_cast<Function>(function), lanes, together, threads);
  return mx::array::make_arrays(std::move(shapes), dtypes, std::move(primitive), inputs);
}

NB_MODULE(MODULE, m) { m.def("run", &run); }
