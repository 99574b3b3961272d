{{/* What each service is told, as JSON, which is YAML and keeps large numbers whole. Each service checks it when it starts, and
tests/charts loads every file with the service's own settings class. */}}

{{/* Takes (list $ component). */}}
{{- define "lionrock.settings" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $settings := include "lionrock.settings.common" . | fromYaml -}}
{{- $settings = mergeOverwrite $settings (include (printf "lionrock.settings.%s" $component) $root | fromYaml) -}}
{{- $settings = mergeOverwrite $settings (deepCopy (get $root.Values $component).settings) -}}
{{- toPrettyJson $settings -}}
{{- end -}}

{{- define "lionrock.settings.common" -}}
{{- $root := index . 0 -}}
server:
  listen: "[::]:{{ include "lionrock.port" (index . 1) }}"
  probe_listen: "[::]:{{ include "lionrock.probeport" . }}"
  trust_domain: {{ $root.Values.trustDomain }}
  tls: {cert_file: /etc/lionrock/tls/tls.crt, key_file: /etc/lionrock/tls/tls.key, ca_file: /etc/lionrock/tls/ca.crt}
  drain_grace_s: {{ $root.Values.drainGraceSeconds }}
  # Callers go to other replicas; the audit service has none, and says when to come back.
  leave_on_drain: {{ ne (index . 1) "audit" }}
  max_connection_age_s: {{ $root.Values.connectionAgeSeconds }}
telemetry:
  log_level: {{ $root.Values.telemetry.logLevel }}
  sample_ratio: {{ $root.Values.telemetry.sampleRatio }}
  {{- with $root.Values.telemetry.otlpEndpoint }}
  otlp_endpoint: {{ . }}
  {{- end }}
  {{- if $root.Values.telemetry.otlpCaSecret }}
  otlp_ca_file: /etc/lionrock/otlp/ca.crt
  {{- end }}
{{- end -}}

{{- define "lionrock.settings.gateway" -}}
{{- $root := . -}}
{{- range $peer := include "lionrock.innerservices" . | fromJsonArray }}
{{ $peer }}:
  target: dns:///{{ include "lionrock.component" (list $root $peer) }}.{{ $root.Release.Namespace }}.svc:{{ include "lionrock.port" $peer }}
  service: {{ $peer }}
{{- end }}
routes_file: /etc/lionrock/routes/routes.json
cache_salt_file: /etc/lionrock/salt/salt
tenants: {{ toJson (include "lionrock.tenants" . | fromJsonArray) }}
tenants_dir: /etc/lionrock/tenants
{{- if .Values.gateway.http.enabled }}
http: {listen: "0.0.0.0:{{ include "lionrock.httpport" . }}"}
{{- end }}
{{- end -}}

{{/* Port of the gateway's HTTP API. */}}
{{- define "lionrock.httpport" -}}7460{{- end -}}

{{/* The tenants, and that of the chart's own test. */}}
{{- define "lionrock.tenants" -}}
{{- $tenants := .Values.tenants -}}
{{- if .Values.test.enabled -}}
{{- range .Values.tenants -}}
{{- if eq .name $.Values.test.tenant -}}
{{- fail (printf "test.tenant: %s is one of your tenants; name another one, or set test.enabled=false" .name) -}}
{{- end -}}
{{- end -}}
{{- $principal := dict "spiffe_id" (include "lionrock.testid" .) "purposes" (list "demonstration") -}}
{{- $tenants = append $tenants (dict "name" .Values.test.tenant "territory" .Values.territory "max_streams" 1 "principals" (list $principal)) -}}
{{- end -}}
{{- toJson $tenants -}}
{{- end -}}

{{- define "lionrock.testid" -}}
spiffe://{{ .Values.trustDomain }}/tenant/{{ .Values.test.tenant }}/workload/chat
{{- end -}}

{{- define "lionrock.settings.tokenization" -}}
models:
  {{- range $name, $path := .Values.models }}
  {{ $name | quote }}: {{ printf "/models/%s" $path | clean | quote }}
  {{- end }}
{{- end -}}

{{- define "lionrock.settings.guardrails" -}}
{{- if .Values.guardrails.profiles }}
policies: {directory: /etc/lionrock/profiles}
{{- else }}
policies: {}
{{- end }}
{{- end -}}

{{- define "lionrock.settings.audit" -}}
{{- $tenants := .Values.audit.formerTenants -}}
{{- range include "lionrock.tenants" . | fromJsonArray }}{{ $tenants = append $tenants .name }}{{ end -}}
platform: {{ .Values.audit.platform | default .Values.trustDomain }}
region: {{ .Values.audit.region | quote }}
tenants: {{ toJson ($tenants | uniq | sortAlpha) }}
tenants_dir: /etc/lionrock/tenants
{{- if .Values.audit.postgresql.existingSecret }}
store_dsn_file: /etc/lionrock/postgresql/{{ .Values.audit.postgresql.key }}
{{- else }}
store_file: /var/lib/lionrock/store/logs.sqlite
{{- end }}
{{- with .Values.audit.witnesses }}
{{- if .servers }}
{{- $servers := list }}
{{- range $server := .servers }}
{{- if $.Values.audit.witnesses.authoritiesConfigMap }}{{ $server = merge (dict "ca_file" "/etc/lionrock/witnesses/ca.crt") $server }}{{ end }}
{{- $servers = append $servers $server }}
{{- end }}
witnesses: {{ toJson $servers }}
witness_policy: {threshold: {{ toJson .threshold }}, require_within_s: {{ toJson .requireWithinSeconds }}}
{{- end }}
{{- end }}
key_dir: /var/lib/lionrock/keys/keys
{{- with .Values.audit.vault }}
{{- if .enabled }}
vault:
  key_store_file: /var/lib/lionrock/keys/vault/keys.sqlite
  {{- with .tenants }}
  tenants: {{ toJson . }}
  {{- end }}
  {{- with .retention }}
  retention: {{ toJson . }}
  {{- end }}
  {{- if .transit.address }}
  transit:
    address: {{ .transit.address }}
    mount: {{ .transit.mount }}
    key_prefix: {{ .transit.keyPrefix | quote }}
    namespace: {{ .transit.namespace | quote }}
    token_file: /etc/lionrock/transit/token
    {{- if .transit.authoritiesConfigMap }}
    ca_file: /etc/lionrock/transit-authorities/ca.crt
    {{- end }}
  {{- else }}
  local_key_dir: {{ ternary "/etc/lionrock/tenant-keys" "/var/lib/lionrock/keys/tenant-keys" (ne .tenantKeys.existingSecret "") }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}
