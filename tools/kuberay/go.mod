// The operator of Ray clusters. Its resource definitions are taken from the module too.
module lionrock.io/tools/kuberay

go 1.25.0

require github.com/ray-project/kuberay/ray-operator v1.6.2

tool github.com/ray-project/kuberay/ray-operator
