// What renders the charts, tests them and holds the result against schemas.
module lionrock.io/tools/charts

go 1.25.0

require (
	github.com/helm-unittest/helm-unittest v1.0.0
	github.com/yannh/kubeconform v0.7.0
	helm.sh/helm/v3 v3.20.0
)

tool (
	github.com/helm-unittest/helm-unittest/cmd/helm-unittest
	github.com/yannh/kubeconform/cmd/kubeconform
	helm.sh/helm/v3/cmd/helm
)
