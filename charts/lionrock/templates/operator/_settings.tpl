{{- define "lionrock.settings.operator" -}}
{{- $certificates := dict "mode" .Values.certificates.mode -}}
{{- if eq .Values.certificates.mode "builtin" -}}
{{- $_ := set $certificates "authority_secret" (include "lionrock.component" (list . "ca")) -}}
{{- else if eq .Values.certificates.mode "cert-manager" -}}
{{- $issuer := .Values.certificates.certManager.issuerRef -}}
{{- $name := ternary $issuer.name (printf "%s.%s" .Release.Namespace $issuer.name) (eq $issuer.kind "ClusterIssuer") -}}
{{- $_ := set $certificates "signer_name" (printf "%ss.%s/%s" (lower $issuer.kind) $issuer.group $name) -}}
{{- end -}}
{{- $here := dict "matchLabels" (dict "kubernetes.io/metadata.name" .Release.Namespace) -}}
namespace: {{ .Release.Namespace }}
namespaces: {{ toJson (default (list .Release.Namespace) .Values.operator.namespaces) }}
trust_domain: {{ .Values.trustDomain }}
listen: "[::]:{{ include "lionrock.operatorport" . }}"
territories: {{ toJson .Values.territories }}
engine_images: {{ toJson .Values.operator.engineImages }}
images: {tokenization: {{ include "lionrock.image" (list . "tokenization") | quote }}}
gang: {by: {{ .Values.operator.gang }}}
certificates: {{ toJson $certificates }}
{{- $named := list }}
{{- range include "lionrock.tenants" . | fromJsonArray }}{{ $named = append $named .name }}{{ end }}
tenants:
  named: {{ toJson $named }}
  has_state: {{ or (include "lionrock.settings.state" . | trim | ne "") (not (empty .Values.gateway.settings.state)) }}
  keeps_consents: {{ or (ne .Values.gateway.consents.existingSecret "") (not (empty .Values.gateway.settings.consents)) }}
gateways:
  target: {{ include "lionrock.component" (list . "gateway-pods") }}.{{ .Release.Namespace }}.svc:{{ include "lionrock.port" "gateway" }}
  tls: {cert_file: /etc/lionrock/tls/tls.crt, key_file: /etc/lionrock/tls/tls.key, ca_file: /etc/lionrock/tls/ca.crt}
lease: {name: {{ include "lionrock.component" (list . "operator") }}}
pods:
  service_account: {{ include "lionrock.component" (list . "engine") }}
  user_id: {{ .Values.runAsUser }}
  image_pull_secrets: [{{ range $i, $secret := .Values.image.pullSecrets }}{{ if $i }}, {{ end }}{{ $secret.name }}{{ end }}]
  {{- with .Values.telemetry.otlpEndpoint }}
  otlp_endpoint: {{ . }}
  {{- end }}
openings:
  gateways:
    peers: [{namespaceSelector: {{ toJson $here }}, podSelector: {matchLabels: {{ include "lionrock.selector" (list . "gateway") | fromYaml | toJson }}}}]
    ports: [{{ include "lionrock.port" "inference" }}]
  operator:
    peers: [{namespaceSelector: {{ toJson $here }}, podSelector: {matchLabels: {{ include "lionrock.selector" (list . "operator") | fromYaml | toJson }}}}]
    ports: [{{ include "lionrock.frontprobeport" . }}]
  kuberay: {peers: {{ toJson .Values.networkPolicy.kuberay }}, ports: [8265, 8000]}
  dns: {peers: {{ toJson .Values.networkPolicy.dns }}, ports: [53]}
  {{- with include "lionrock.apiserver" . | fromYaml }}
  api_server: {peers: {{ toJson .peers }}, ports: {{ toJson .ports }}}
  {{- end }}
  {{- if .Values.telemetry.otlpEndpoint }}
  telemetry: {peers: {{ toJson .Values.telemetry.otlpPeers }}, ports: [{{ include "lionrock.otlpport" . }}]}
  {{- end }}
  {{- with .Values.networkPolicy.objectStores }}
  {{- if .peers }}
  objects: {{ toJson . }}
  {{- end }}
  {{- end }}
telemetry:
  log_level: {{ .Values.telemetry.logLevel }}
  sample_ratio: {{ .Values.telemetry.sampleRatio }}
  {{- with .Values.telemetry.otlpEndpoint }}
  otlp_endpoint: {{ . }}
  {{- end }}
  {{- if .Values.telemetry.otlpCaSecret }}
  otlp_ca_file: /etc/lionrock/otlp/ca.crt
  {{- end }}
{{- end -}}
{{- define "lionrock.operatorport" -}}8080{{- end -}}
{{- define "lionrock.frontprobeport" -}}50054{{- end -}}
