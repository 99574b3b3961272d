// Names of Services, for pods on the real node of `make cluster-demo`.
module lionrock.io/tools/coredns

go 1.25.0

require github.com/coredns/coredns v1.12.4

tool github.com/coredns/coredns
