{{/* Components that have a certificate of their own, as JSON. */}}
{{- define "lionrock.identities" -}}
{{- $identities := include "lionrock.services" . | fromJsonArray -}}
{{- if .Values.operator.enabled }}{{ $identities = append $identities "operator" }}{{ end -}}
{{- if .Values.audit.monitor.enabled }}{{ $identities = append $identities "audit-monitor" }}{{ end -}}
{{- toJson $identities -}}
{{- end -}}

{{/* What the built-in issuer issues. Takes (list $ certificates). */}}
{{- define "lionrock.plan" -}}
{{- $root := index . 0 -}}
trust_domain: {{ $root.Values.trustDomain }}
authority_secret: {{ include "lionrock.component" (list $root "ca") }}
authority_lifetime_s: {{ mul $root.Values.certificates.builtin.authorityDays 86400 }}
owner: {config_map: {{ include "lionrock.component" (list $root "certificates") }}}
labels: {app.kubernetes.io/part-of: lionrock, app.kubernetes.io/instance: {{ $root.Release.Name }}}
certificates: {{ toJson (index . 1) }}
{{- end -}}

{{/* Certificates of services and callers, as JSON. */}}
{{- define "lionrock.certificates" -}}
{{- $lifetime := mul .Values.certificates.lifetimeHours 3600 -}}
{{- $certificates := list -}}
{{- range include "lionrock.identities" . | fromJsonArray -}}
{{- $certificates = append $certificates (dict
      "secret" (printf "%s-tls" (include "lionrock.component" (list $ .)))
      "spiffe_id" (printf "spiffe://%s/service/%s" $.Values.trustDomain .)
      "dns_names" (list (printf "%s.lionrock.internal" .))
      "lifetime_s" $lifetime) -}}
{{- end -}}
{{- range .Values.certificates.builtin.callers -}}
{{- $certificates = append $certificates (dict
      "secret" (include "lionrock.component" (list $ (printf "caller-%s-%s-tls" .tenant .name)))
      "spiffe_id" (printf "spiffe://%s/tenant/%s/%s/%s" $.Values.trustDomain .tenant .kind .name)
      "dns_names" list
      "lifetime_s" $lifetime) -}}
{{- end -}}
{{- toJson $certificates -}}
{{- end -}}

{{/* Names of all Secrets that the issuer may read and replace, as JSON. */}}
{{- define "lionrock.issuedsecrets" -}}
{{- $names := list (include "lionrock.component" (list . "ca")) -}}
{{- range include "lionrock.certificates" . | fromJsonArray }}{{ $names = append $names .secret }}{{ end -}}
{{- if .Values.test.enabled }}{{ $names = append $names (printf "%s-tls" (include "lionrock.component" (list . "test"))) }}{{ end -}}
{{- toJson $names -}}
{{- end -}}

{{/* Pod of the issuer. Takes (list $ key-of-the-plan). */}}
{{- define "lionrock.issuerpod" -}}
{{- $root := index . 0 -}}
metadata:
  labels:
    {{- include "lionrock.podlabels" (list $root "certificates") | nindent 4 }}
spec:
  {{- include "lionrock.podcommon" (dict "root" $root "component" "certificates" "values" dict "token" true) | nindent 2 }}
  restartPolicy: OnFailure
  containers:
    - name: issuing
      image: {{ include "lionrock.image" (list $root "gateway") }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [python3, -m, lionrock.chassis.issuing]
      args:
        - --plan=/etc/lionrock/issuing/{{ index . 1 }}
        - --namespace={{ $root.Release.Namespace }}
        - --api-server=https://$(KUBERNETES_SERVICE_HOST):$(KUBERNETES_SERVICE_PORT)
      resources: {{ toJson $root.Values.certificates.builtin.resources }}
      securityContext:
        {{- include "lionrock.containersecurity" $root | nindent 8 }}
      volumeMounts:
        - {name: plan, mountPath: /etc/lionrock/issuing, readOnly: true}
  volumes:
    - name: plan
      configMap: {name: {{ include "lionrock.component" (list $root "certificates") }}}
{{- end -}}
