{{/* Names, labels and images. */}}

{{- define "lionrock.name" -}}
{{- default "lionrock" .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Beginning of all names: the release's, which the chart's is put behind unless it is in it. */}}
{{- define "lionrock.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 36 | trimSuffix "-" -}}
{{- else if contains (include "lionrock.name" .) .Release.Name -}}
{{- .Release.Name | trunc 36 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "lionrock.name" .) | trunc 36 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of an object of a component. Takes (list $ component). */}}
{{- define "lionrock.component" -}}
{{- printf "%s-%s" (include "lionrock.fullname" (index . 0)) (index . 1) -}}
{{- end -}}

{{/* Beginning of names of objects that have no namespace. */}}
{{- define "lionrock.clustername" -}}
{{- printf "%s-%s" .Release.Namespace (include "lionrock.fullname" .) -}}
{{- end -}}

{{/* Whether the mesh has a tokenization of its own, "true" or empty. Models that the operator runs bring theirs. */}}
{{- define "lionrock.owntokenization" -}}
{{- $enabled := .Values.tokenization.enabled -}}
{{- if kindIs "invalid" $enabled }}{{ $enabled = not (empty .Values.models) }}{{ end -}}
{{- if $enabled -}}
{{- if not .Values.models }}{{ fail "models: which models has tokenization? (or tokenization.enabled=false)" }}{{ end -}}
{{- if not .Values.modelVolume }}{{ fail "modelVolume: where are the files of models? (or tokenization.enabled=false)" }}{{ end -}}
true
{{- end -}}
{{- end -}}

{{/* Services that the gateway calls in the mesh itself, as JSON. */}}
{{- define "lionrock.innerservices" -}}
{{- toJson (concat (ternary (list "tokenization") list (eq (include "lionrock.owntokenization" .) "true")) (list "guardrails" "audit")) -}}
{{- end -}}

{{/* All services of the mesh, as JSON. */}}
{{- define "lionrock.services" -}}
{{- toJson (concat (list "gateway") (include "lionrock.innerservices" . | fromJsonArray)) -}}
{{- end -}}

{{/* What selects the pods of a component. Takes (list $ component). */}}
{{- define "lionrock.selector" -}}
app.kubernetes.io/name: {{ include "lionrock.name" (index . 0) }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels of every object. Takes (list $ component). */}}
{{- define "lionrock.labels" -}}
{{ include "lionrock.selector" . }}
app.kubernetes.io/part-of: lionrock
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels of a pod: they do not change with the chart's version, or each upgrade would replace every pod. Takes (list $ component). */}}
{{- define "lionrock.podlabels" -}}
{{ include "lionrock.selector" . }}
app.kubernetes.io/part-of: lionrock
lionrock.io/territory: {{ (index . 0).Values.territory }}
{{- end -}}

{{/* Image of a service. Takes (list $ service). */}}
{{- define "lionrock.image" -}}
{{- $image := (index . 0).Values.image -}}
{{- $service := index . 1 -}}
{{- $repository := printf "%s%s" $image.prefix $service -}}
{{- if $image.registry }}{{ $repository = printf "%s/%s" $image.registry $repository }}{{ end -}}
{{- if index $image.references $service -}}
{{ index $image.references $service }}
{{- else if index $image.digests $service -}}
{{ $repository }}@{{ index $image.digests $service }}
{{- else -}}
{{ $repository }}:{{ $image.tag | default (index $ 0).Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Port of a component's service. */}}
{{- define "lionrock.port" -}}
{{- get (dict "gateway" "50051" "tokenization" "50052" "inference" "50053" "guardrails" "50054" "audit" "50055") . -}}
{{- end -}}

{{- define "lionrock.probeport" -}}8081{{- end -}}

{{/* Port at which the audit service serves tiles. */}}
{{- define "lionrock.tilesport" -}}7470{{- end -}}

{{/* First part of the origins of all logs. */}}
{{- define "lionrock.platform" -}}
{{- .Values.audit.platform | default .Values.trustDomain -}}
{{- end -}}

{{/* Tenants that have a log, as JSON. */}}
{{- define "lionrock.loggedtenants" -}}
{{- $tenants := .Values.audit.formerTenants -}}
{{- range include "lionrock.tenants" . | fromJsonArray }}{{ $tenants = append $tenants .name }}{{ end -}}
{{- toJson ($tenants | uniq | sortAlpha) -}}
{{- end -}}

{{/* Values of a component. Takes (list $ component). */}}
{{- define "lionrock.values" -}}
{{- if eq (index . 1) "audit-monitor" }}{{ toJson (index . 0).Values.audit.monitor }}{{ else }}{{ get (index . 0).Values (index . 1) | toJson }}{{ end -}}
{{- end -}}
