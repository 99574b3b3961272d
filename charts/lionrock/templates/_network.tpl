{{- define "lionrock.netpol.dns" -}}
- to: {{ toJson .Values.networkPolicy.dns }}
  ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
{{- end -}}

{{- define "lionrock.netpol.otlp" -}}
{{- if .Values.telemetry.otlpEndpoint }}
{{- if not .Values.telemetry.otlpPeers }}{{ fail "telemetry.otlpPeers: whom may the pods reach as the collector? (network policy peers)" }}{{ end }}
- to: {{ toJson .Values.telemetry.otlpPeers }}
  ports: [{protocol: TCP, port: {{ include "lionrock.otlpport" . }}}]
{{- end }}
{{- end -}}

{{/* The audit service's database. */}}
{{- define "lionrock.netpol.postgresql" -}}
{{- with .Values.audit.postgresql }}
{{- if .existingSecret }}
{{- if not .peers }}{{ fail "audit.postgresql.peers: whom may the audit service reach as its database? (network policy peers)" }}{{ end }}
- to: {{ toJson .peers }}
  ports: [{protocol: TCP, port: {{ .port }}}]
{{- end }}
{{- end }}
{{- end -}}

{{/* The gateways' database. */}}
{{- define "lionrock.netpol.state" -}}
{{- with .Values.gateway.state.postgresql }}
{{- if .existingSecret }}
{{- if not .peers }}{{ fail "gateway.state.postgresql.peers: whom may gateways reach as their database? (network policy peers)" }}{{ end }}
- to: {{ toJson .peers }}
  ports: [{protocol: TCP, port: {{ .port }}}]
{{- end }}
{{- end }}
{{- end -}}

{{/* Issuers of tokens, whose keys gateways fetch. */}}
{{- define "lionrock.netpol.tokenissuers" -}}
{{- with .Values.networkPolicy.tokenIssuers }}
{{- if .peers }}
- to: {{ toJson .peers }}
  ports:
    {{- range .ports | default (list 443) }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Receivers of notices that an answer waits for a reviewer. */}}
{{- define "lionrock.netpol.reviewnotices" -}}
{{- with .Values.networkPolicy.reviewNotices }}
{{- if .peers }}
- to: {{ toJson .peers }}
  ports:
    {{- range .ports | default (list 443) }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The witnesses of the audit service's logs. */}}
{{- define "lionrock.netpol.witnesses" -}}
{{- with .Values.audit.witnesses }}
{{- if .servers }}
{{- if not .peers }}{{ fail "audit.witnesses.peers: whom may the audit service reach as its witnesses? (network policy peers)" }}{{ end }}
{{- $ports := list }}
{{- range .servers }}
{{- $url := urlParse .url }}
{{- $ports = append $ports (regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https"))) }}
{{- end }}
- to: {{ toJson .peers }}
  ports:
    {{- range uniq $ports | sortAlpha }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The transit engine with the tenants' keys. */}}
{{- define "lionrock.netpol.transit" -}}
{{- with .Values.audit.vault }}
{{- if and .enabled .transit.address }}
{{- if not .transit.peers }}{{ fail "audit.vault.transit.peers: whom may the audit service reach as its transit engine? (network policy peers)" }}{{ end }}
- to: {{ toJson .transit.peers }}
  ports: [{protocol: TCP, port: {{ regexFind ":[0-9]+$" (urlParse .transit.address).host | trimPrefix ":" | default "443" }}}]
{{- end }}
{{- end }}
{{- end -}}

{{/* The bucket with the tiles. */}}
{{- define "lionrock.netpol.tiles" -}}
{{- with .Values.audit.tiles }}
{{- if eq .sink "bucket" }}
{{- if not .bucket.peers }}{{ fail "audit.tiles.bucket.peers: whom may the audit service reach as its object store? (network policy peers)" }}{{ end }}
- to: {{ toJson .bucket.peers }}
  ports: [{protocol: TCP, port: {{ regexFind ":[0-9]+$" (urlParse .bucket.endpoint).host | trimPrefix ":" | default "443" }}}]
{{- end }}
{{- end }}
{{- end -}}

{{/* Readers of tiles: whom the values name, and the chart's own monitor. */}}
{{- define "lionrock.netpol.tilereaders" -}}
{{- $peers := .Values.audit.tiles.http.peers }}
{{- if .Values.audit.monitor.enabled }}
{{- $peers = append $peers (dict "podSelector" (dict "matchLabels" (include "lionrock.selector" (list . "audit-monitor") | fromYaml))) }}
{{- end }}
{{- if not $peers }}{{ fail "audit.tiles.http.peers: who may reach the tiles? (network policy peers; audit.monitor.enabled lets the chart's own monitor in)" }}{{ end }}
- from: {{ toJson $peers }}
  ports: [{protocol: TCP, port: {{ include "lionrock.tilesport" . }}}]
{{- end -}}

{{- define "lionrock.otlpport" -}}
{{- $host := (urlParse .Values.telemetry.otlpEndpoint).host -}}
{{- if regexMatch ":[0-9]+$" $host }}{{ regexFind "[0-9]+$" $host }}{{ else }}4317{{ end -}}
{{- end -}}

{{/* The API server's addresses and ports, as peers of a network policy. It is no pod, so it is named by address. */}}
{{- define "lionrock.apiserver" -}}
{{- $cidrs := .Values.networkPolicy.apiServer.cidrs -}}
{{- $ports := .Values.networkPolicy.apiServer.ports -}}
{{- if not $cidrs -}}
{{- range (lookup "discovery.k8s.io/v1" "EndpointSlice" "default" "").items -}}
{{- if eq (dig "metadata" "labels" "kubernetes.io/service-name" "" .) "kubernetes" -}}
{{- $bits := ternary 128 32 (eq .addressType "IPv6") -}}
{{- range .endpoints }}{{ range .addresses }}{{ $cidrs = append $cidrs (printf "%s/%d" . $bits) }}{{ end }}{{ end -}}
{{- range .ports }}{{ $ports = append $ports .port }}{{ end -}}
{{- end -}}
{{- end -}}
{{- with lookup "v1" "Service" "default" "kubernetes" -}}
{{- range .spec.clusterIPs }}{{ $cidrs = append $cidrs (printf "%s/%d" . (ternary 128 32 (contains ":" .))) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if not $cidrs -}}
{{- fail "networkPolicy.apiServer.cidrs: the API server's addresses cannot be looked up here; kubectl get endpointslices -n default -l kubernetes.io/service-name=kubernetes" -}}
{{- end -}}
peers:
  {{- range $cidrs | uniq | sortAlpha }}
  - ipBlock: {cidr: "{{ . }}"}
  {{- end }}
ports:
  {{- range $port := $ports | uniq }}
  - {{ $port }}
  {{- end }}
{{- end -}}

{{- define "lionrock.netpol.apiserver" -}}
{{- with include "lionrock.apiserver" . | fromYaml -}}
- to: {{ toJson .peers }}
  ports:
    {{- range .ports }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end -}}
{{- end -}}

