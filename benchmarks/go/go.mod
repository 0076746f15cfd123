module fibers/benchmarks/echo

go 1.21
