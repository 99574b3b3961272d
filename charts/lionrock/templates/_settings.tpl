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
{{ include "lionrock.settings.telemetry" $root }}
{{- end -}}

{{- define "lionrock.settings.telemetry" -}}
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
{{- if .Values.gateway.tokenPort.enabled }}
server: {token_listen: "[::]:{{ include "lionrock.tokenport" . }}"}
{{- end }}
{{- with include "lionrock.servedin" . }}
served_in: {{ . }}
{{- end }}
{{- if .Values.gateway.policies.existingConfigMap }}
policy_dir: /etc/lionrock/policies
{{- end }}
{{- with include "lionrock.settings.state" . }}
state: {{ . }}
{{- end }}
{{- with .Values.gateway.apiKeys }}
{{- if .existingSecret }}
api_keys: {secret_file: /etc/lionrock/api-keys/{{ .key }}, max_lifetime_days: {{ .maxLifetimeDays }}}
{{- end }}
{{- end }}
{{- with .Values.gateway.consents }}
{{- if .existingSecret }}
consents: {secret_file: /etc/lionrock/consents/{{ .key }}}
{{- else if not $.Values.gateway.settings.consents }}
{{- range $tenant := $.Values.tenants }}
{{- range .purpose_rules }}
{{- if .requires_consent }}{{ fail (printf "gateway.consents: where are consents to %s of tenant %s kept? (gateway.consents.existingSecret)" .purpose $tenant.name) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Where gateways count quotas and keep API keys and consents, or nothing. Refuses what would need it. */}}
{{- define "lionrock.settings.state" -}}
{{- $gateway := .Values.gateway -}}
{{- $database := $gateway.state.postgresql.existingSecret -}}
{{- if and $database $gateway.state.sqlite.enabled }}{{ fail "gateway.state: in a database (postgresql) or in a file (sqlite), not in both" }}{{ end -}}
{{- range .Values.tenants -}}
{{- if and (not (kindIs "invalid" .review)) (not $.Values.audit.vault.enabled) (not $.Values.audit.settings.vault) }}{{ fail (printf "audit.vault: where are the answers of tenant %s kept that wait for a reviewer? (audit.vault.enabled)" .name) }}{{ end -}}
{{- end -}}
{{- if $database -}}
{postgres_dsn_file: /etc/lionrock/state/{{ $gateway.state.postgresql.key }}}
{{- else if $gateway.state.sqlite.enabled -}}
{{- if or $gateway.autoscaling.enabled (gt (int $gateway.replicas) 1) }}{{ fail "gateway.state.sqlite: a file is for one gateway; set gateway.replicas=1 without autoscaling, or gateway.state.postgresql.existingSecret" }}{{ end -}}
{sqlite_file: /var/lib/lionrock/state/gateway.sqlite}
{{- else if not $gateway.settings.state -}}
{{- if $gateway.apiKeys.existingSecret }}{{ fail "gateway.apiKeys: where are API keys kept? (gateway.state.postgresql.existingSecret, or gateway.state.sqlite.enabled for one gateway)" }}{{ end -}}
{{- if $gateway.consents.existingSecret }}{{ fail "gateway.consents: where are consents kept? (gateway.state.postgresql.existingSecret, or gateway.state.sqlite.enabled for one gateway)" }}{{ end -}}
{{- range $tenant := .Values.tenants -}}
{{- if not (kindIs "invalid" $tenant.review) }}{{ fail (printf "gateway.state: where is the review queue of tenant %s kept? (gateway.state.postgresql.existingSecret, or gateway.state.sqlite.enabled for one gateway)" $tenant.name) }}{{ end -}}
{{- $bounded := concat (list $tenant) ($tenant.principals | default list) -}}
{{- range $tenant.issuers }}{{ $bounded = concat $bounded (.bindings | default list) }}{{ end -}}
{{- range $bounded -}}
{{- if compact (values (omit (.quotas | default dict) "weight")) }}{{ fail (printf "gateway.state: where are the quotas of tenant %s counted? (gateway.state.postgresql.existingSecret, or gateway.state.sqlite.enabled for one gateway)" $tenant.name) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Territory whose tenants are answered; empty: all are. Refuses tenants that would never be. */}}
{{- define "lionrock.servedin" -}}
{{- $territory := .Values.gateway.servedIn -}}
{{- if kindIs "invalid" $territory }}{{ $territory = .Values.territory }}{{ end -}}
{{- if $territory -}}
{{- range .Values.tenants -}}
{{- if ne (.territory | default "HK") $territory }}{{ fail (printf "tenants: %s is of territory %s, and gateways answer those of %s; state its territory, or gateway.servedIn" .name (.territory | default "HK") $territory) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- $territory -}}
{{- end -}}

{{/* Port of the gateway's HTTP API. */}}
{{- define "lionrock.httpport" -}}7460{{- end -}}

{{/* Port of the gateway for callers without a certificate. */}}
{{- define "lionrock.tokenport" -}}50056{{- end -}}

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
platform: {{ include "lionrock.platform" . }}
region: {{ .Values.audit.region | quote }}
tenants: {{ include "lionrock.loggedtenants" . }}
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
{{- with include "lionrock.settings.tiles" . }}
{{ . }}
{{- end }}
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

{{- define "lionrock.settings.tiles" -}}
{{- with .Values.audit.tiles -}}
{{- if and .http.enabled (not .sink) }}{{ fail "audit.tiles.http: tiles of what? (audit.tiles.sink)" }}{{ end -}}
{{- if and (eq .sink "store") $.Values.audit.postgresql.existingSecret }}{{ fail "audit.tiles.sink: with audit.postgresql there is no volume of the store; use volume or bucket" }}{{ end -}}
{{- if .sink -}}
tiles:
  interval_s: {{ .intervalSeconds }}
  {{- if eq .sink "bucket" }}
  {{- if not (and .bucket.endpoint .bucket.name) }}{{ fail "audit.tiles.bucket: which bucket? (endpoint and name)" }}{{ end }}
  bucket:
    endpoint: {{ .bucket.endpoint }}
    bucket: {{ .bucket.name | quote }}
    prefix: {{ .bucket.prefix | quote }}
    region: {{ .bucket.region | quote }}
    access_key_id_file: /etc/lionrock/tiles-bucket/access-key-id
    secret_access_key_file: /etc/lionrock/tiles-bucket/secret-access-key
    {{- if .bucket.authoritiesConfigMap }}
    ca_file: /etc/lionrock/tiles-bucket-authorities/ca.crt
    {{- end }}
  {{- else }}
  directory: {{ ternary "/var/lib/lionrock/store/tiles" "/var/lib/lionrock/tiles/tiles" (eq .sink "store") }}
  {{- end }}
  {{- if .http.enabled }}
  http:
    listen: "[::]:{{ include "lionrock.tilesport" $ }}"
    tls: {cert_file: /etc/lionrock/tls/tls.crt, key_file: /etc/lionrock/tls/tls.key, ca_file: /etc/lionrock/tls/ca.crt}
    client_certificates: required
  http_readers: {{ include "lionrock.tilereaders" $ }}
  {{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* SPIFFE ids that read a tenant's log, as JSON: those of the values, and the chart's own monitor where it follows that log. */}}
{{- define "lionrock.tilereaders" -}}
{{- $tenants := include "lionrock.loggedtenants" . | fromJsonArray -}}
{{- $readers := deepCopy .Values.audit.tiles.http.readers -}}
{{- range $tenant, $ids := $readers -}}
{{- if not (has $tenant $tenants) }}{{ fail (printf "audit.tiles.http.readers: %s is no tenant with a log" $tenant) }}{{ end -}}
{{- end -}}
{{- if .Values.audit.monitor.enabled -}}
{{- $monitor := printf "spiffe://%s/service/audit-monitor" .Values.trustDomain -}}
{{- range $origin, $keys := include "lionrock.followedlogs" . | fromJson -}}
{{- $tenant := trimPrefix (printf "%s/audit" (include "lionrock.platform" $)) $origin | trimPrefix "/" -}}
{{- if $tenant }}{{ $_ := set $readers $tenant (append (get $readers $tenant | default list) $monitor | uniq) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- toJson $readers -}}
{{- end -}}

{{/* Logs that the monitor follows, by origin, with their keys, as JSON. The name of a key is the origin of its log. */}}
{{- define "lionrock.followedlogs" -}}
{{- $platform := printf "%s/audit" (include "lionrock.platform" .) -}}
{{- $origins := list $platform -}}
{{- range include "lionrock.loggedtenants" . | fromJsonArray }}{{ $origins = append $origins (printf "%s/%s" $platform .) }}{{ end -}}
{{- $logs := dict -}}
{{- range $key := .Values.audit.monitor.keys -}}
{{- $origin := splitList "+" $key | first -}}
{{- if not (has $origin $origins) }}{{ fail (printf "audit.monitor.keys: %s is no log of this mesh" $origin) }}{{ end -}}
{{- $_ := set $logs $origin (append (get $logs $origin | default list) $key) -}}
{{- end -}}
{{- toJson $logs -}}
{{- end -}}

{{/* What the monitor is told, as JSON. */}}
{{- define "lionrock.settings.audit-monitor" -}}
{{- $monitor := .Values.audit.monitor -}}
{{- if not .Values.audit.tiles.http.enabled }}{{ fail "audit.monitor: it reads tiles over HTTPS; set audit.tiles.sink and audit.tiles.http.enabled" }}{{ end -}}
{{- if not $monitor.keys }}{{ fail "audit.monitor.keys: which logs, by which keys? (lionrock audit keys)" }}{{ end -}}
{{- $platform := printf "%s/audit" (include "lionrock.platform" .) -}}
{{- $address := printf "https://%s.%s.svc:%v" (include "lionrock.component" (list . "audit-tiles")) .Release.Namespace .Values.audit.tiles.http.port -}}
{{- $tls := dict "cert_file" "/etc/lionrock/tls/tls.crt" "key_file" "/etc/lionrock/tls/tls.key" "ca_file" "/etc/lionrock/tls/ca.crt" -}}
{{- $logs := list -}}
{{- range $origin, $keys := include "lionrock.followedlogs" . | fromJson -}}
{{- $log := dict "source" (printf "%s/%s" $address $origin) "server_name" "audit.lionrock.internal" "tls" $tls "keys" $keys -}}
{{- if eq $origin $platform -}}
{{- with $monitor.stallAfterSeconds }}{{ $_ := set $log "stall_after_s" . }}{{ end -}}
{{- with $.Values.audit.witnesses.servers -}}
{{- $witnesses := list }}{{ range . }}{{ $witnesses = append $witnesses .verifier_key }}{{ end -}}
{{- $_ := set $log "witnesses" (dict "keys" $witnesses "needed" ($.Values.audit.witnesses.threshold | default (len .))) -}}
{{- end -}}
{{- end -}}
{{- $logs = append $logs $log -}}
{{- end -}}
{{- $settings := include "lionrock.settings.telemetry" . | fromYaml -}}
{{- $_ := set $settings "state_dir" "/var/lib/lionrock/monitor/state" -}}
{{- $_ := set $settings "interval_s" $monitor.intervalSeconds -}}
{{- $_ := set $settings "probe_listen" (printf "[::]:%s" (include "lionrock.probeport" .)) -}}
{{- $_ := set $settings "logs" $logs -}}
{{- toPrettyJson (mergeOverwrite $settings (deepCopy $monitor.settings)) -}}
{{- end -}}
