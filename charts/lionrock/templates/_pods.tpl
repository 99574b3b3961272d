{{/* What every pod of the mesh has: territory, security, certificates, probes. */}}

{{/* Node affinity for the territory. It is required: a pod without it is refused by the admission policy. */}}
{{- define "lionrock.affinity" -}}
{{- $territory := get .Values.territories .Values.territory -}}
{{- if not $territory }}
{{- fail (printf "territories: %q is the territory of this mesh, and territories does not say which nodes it has" .Values.territory) }}
{{- end -}}
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms:
      - matchExpressions:
          - key: {{ $territory.key }}
            operator: In
            values: {{ toJson $territory.values }}
{{- end -}}

{{/* Pod Security Standard "restricted". */}}
{{- define "lionrock.podsecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.runAsUser }}
runAsGroup: {{ .Values.runAsUser }}
fsGroup: {{ .Values.runAsUser }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "lionrock.containersecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Fields of every pod. Takes a dict: root, component, values (of the component), token (whether the pod talks to the API server). */}}
{{- define "lionrock.podcommon" -}}
serviceAccountName: {{ include "lionrock.component" (list .root .component) }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false  # its variables would be taken for settings
securityContext:
  {{- include "lionrock.podsecurity" .root | nindent 2 }}
affinity:
  {{- include "lionrock.affinity" .root | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* One pod a node and an even spread over zones, where that can be had. Takes (list $ component). */}}
{{- define "lionrock.spread" -}}
{{- $selector := include "lionrock.selector" . -}}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- $selector | nindent 6 }}
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end -}}

{{/* Volumes with the certificate of a component. Takes (list $ component), or (list $ component "optional") for a pod that has other
work to do and starts without its certificate. */}}
{{- define "lionrock.tlsvolumes" -}}
{{- $root := index . 0 -}}
{{- if eq $root.Values.certificates.mode "spire" }}
- name: tls
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
- name: workload-api
  csi: {driver: {{ $root.Values.certificates.spire.csiDriver }}, readOnly: true}
- name: spiffe-helper
  configMap: {name: {{ include "lionrock.component" (list $root "spiffe-helper") }}}
{{- else }}
- name: tls
  secret: {secretName: {{ include "lionrock.component" . }}-tls, defaultMode: 0440{{ if has "optional" . }}, optional: true{{ end }}}
{{- end }}
{{- end -}}

{{/* Under SPIRE: fetch the certificate before the service starts, then keep it fresh beside it. */}}
{{- define "lionrock.tlscontainers" -}}
{{- if eq .Values.certificates.mode "spire" }}
{{- $helper := .Values.certificates.spire.helper }}
{{- $root := . }}
{{- range $name, $daemon := dict "spiffe-helper" "true" "certificate" "false" }}
- name: {{ $name }}
  image: {{ $helper.image }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  args: [-config, /etc/spiffe-helper/helper.conf, -daemon-mode={{ $daemon }}]
  {{- if eq $daemon "true" }}
  restartPolicy: Always
  {{- end }}
  securityContext:
    {{- include "lionrock.containersecurity" $root | nindent 4 }}
  resources: {{ toJson $helper.resources }}
  volumeMounts:
    - {name: tls, mountPath: /etc/lionrock/tls}
    - {name: workload-api, mountPath: /spiffe-workload-api, readOnly: true}
    - {name: spiffe-helper, mountPath: /etc/spiffe-helper, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{/* Probes on the clear-text port: a kubelet has no certificate. Takes seconds that a start may take. */}}
{{- define "lionrock.probes" -}}
startupProbe:
  grpc: {port: {{ include "lionrock.probeport" . }}, service: liveness}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: {{ div . 2 }}
readinessProbe:
  grpc: {port: {{ include "lionrock.probeport" . }}}
  periodSeconds: 5
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  grpc: {port: {{ include "lionrock.probeport" . }}, service: liveness}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{/* Pod template of a service. Takes a dict: root, component, startSeconds, volumes, mounts. */}}
{{- define "lionrock.servicepod" -}}
{{- $values := get .root.Values .component -}}
{{- $settings := include "lionrock.settings" (list .root .component) -}}
metadata:
  labels:
    {{- include "lionrock.podlabels" (list .root .component) | nindent 4 }}
  annotations:
    lionrock.io/settings-digest: {{ sha256sum $settings }}
    {{- with .digests }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "lionrock.podcommon" (dict "root" .root "component" .component "values" $values) | nindent 2 }}
  # Five seconds until nobody sends new calls here, the drain, and the end of the process.
  terminationGracePeriodSeconds: {{ add 5 .root.Values.drainGraceSeconds 25 }}
  topologySpreadConstraints:
    {{- if eq .component "audit" }}
    {{- include "lionrock.spread" (list .root .component) | replace "matchLabelKeys: [pod-template-hash]" "" | nindent 4 }}
    {{- else }}
    {{- include "lionrock.spread" (list .root .component) | nindent 4 }}
    {{- end }}
  {{- with include "lionrock.tlscontainers" .root }}
  initContainers:
    {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "lionrock.image" (list .root .component) }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args: [--config, /etc/lionrock/settings/settings.yaml]
      ports:
        - {name: grpc, containerPort: {{ include "lionrock.port" .component }}}
        - {name: probes, containerPort: {{ include "lionrock.probeport" . }}}
        {{- if and (eq .component "audit") .root.Values.audit.tiles.http.enabled }}
        - {name: tiles, containerPort: {{ include "lionrock.tilesport" . }}}
        {{- end }}
        {{- if and (eq .component "gateway") .root.Values.gateway.http.enabled }}
        - {name: http, containerPort: {{ include "lionrock.httpport" .root }}}
        {{- end }}
        {{- if and (eq .component "gateway") .root.Values.gateway.tokenPort.enabled }}
        - {name: grpc-tokens, containerPort: {{ include "lionrock.tokenport" .root }}}
        {{- end }}
      {{- include "lionrock.probes" .startSeconds | nindent 6 }}
      lifecycle:
        preStop: {sleep: {seconds: 5}}  # until the Endpoints are without this pod
      resources: {{ toJson $values.resources }}
      securityContext:
        {{- include "lionrock.containersecurity" .root | nindent 8 }}
      volumeMounts:
        - {name: settings, mountPath: /etc/lionrock/settings, readOnly: true}
        - {name: tls, mountPath: /etc/lionrock/tls, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        {{- if .root.Values.telemetry.otlpCaSecret }}
        - {name: otlp-ca, mountPath: /etc/lionrock/otlp, readOnly: true}
        {{- end }}
        {{- with .mounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: settings
      configMap: {name: {{ include "lionrock.component" (list .root .component) }}}
    - name: tmp
      emptyDir: {sizeLimit: 64Mi}
    {{- include "lionrock.tlsvolumes" (list .root .component) | nindent 4 }}
    {{- with .root.Values.telemetry.otlpCaSecret }}
    - name: otlp-ca
      secret: {secretName: {{ . }}, items: [{key: ca.crt, path: ca.crt}]}
    {{- end }}
    {{- with .volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
