{{- define "spanring.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 48 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 48 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "spanring.collectors" -}}
{{ include "spanring.fullname" . }}-collector
{{- end }}

{{- define "spanring.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "spanring.fullname" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "spanring.image" -}}
{{- if not .Values.image.repository }}
{{- fail (printf "image.repository is not set, and no image is published. Build one in the root of the repository and push it where your nodes can pull it: docker build -f deploy/Dockerfile -t REGISTRY/spanring:%s . && docker push REGISTRY/spanring:%s. Then add --set image.repository=REGISTRY/spanring" .Chart.AppVersion .Chart.AppVersion) }}
{{- end }}
{{- with .Values.image }}{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}{{ end }}
{{- end }}

{{- define "spanring.selector" -}}
app.kubernetes.io/name: spanring
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: proxy
{{- end }}

{{- define "spanring.collectorSelector" -}}
app.kubernetes.io/name: spanring
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: collector
{{- end }}

{{- define "spanring.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: spanring
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "spanring.labels" -}}
{{ include "spanring.selector" . }}
{{ include "spanring.commonLabels" . }}
{{- end }}

{{- define "spanring.collectorLabels" -}}
{{ include "spanring.collectorSelector" . }}
{{ include "spanring.commonLabels" . }}
{{- end }}

{{- /* Required by the restricted Pod Security Standard, plus a read-only root file system. */ -}}
{{- define "spanring.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "spanring.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- define "spanring.poolHostname" -}}
{{ .Values.pool.hostname | default (printf "%s.%s.svc" (include "spanring.collectors" .) .Release.Namespace) }}
{{- end }}

{{- define "spanring.poolService" -}}
{{ .Values.pool.service | default (printf "%s.%s" (include "spanring.collectors" .) .Release.Namespace) }}
{{- end }}

{{- /* "http" if the backends are called by OTLP/HTTP, else "grpc". */ -}}
{{- define "spanring.poolProtocol" -}}
{{ ternary "http" "grpc" (hasKey .Values.pool.protocol "otlp_http") }}
{{- end }}

{{- define "spanring.collectorPort" -}}
{{ ternary 4318 4317 (hasKey .Values.pool.protocol "otlp_http") }}
{{- end }}

{{- define "spanring.poolPort" -}}
{{ int .Values.pool.port | default (include "spanring.collectorPort" .) }}
{{- end }}

{{- /* The namespace of the Service whose EndpointSlices are watched. */ -}}
{{- define "spanring.poolNamespace" -}}
{{- $service := splitList "." (include "spanring.poolService" .) -}}
{{ if gt (len $service) 1 }}{{ index $service 1 }}{{ else }}{{ .Release.Namespace }}{{ end }}
{{- end }}

{{- /* Values that contradict each other. */ -}}
{{- define "spanring.check" -}}
{{- $pool := .Values.pool -}}
{{- if and (eq $pool.resolver "k8s") $pool.hostname -}}
{{- fail "pool.hostname is for pool.resolver dns; with k8s write pool.service" -}}
{{- end -}}
{{- if and (eq $pool.resolver "dns") $pool.service -}}
{{- fail "pool.service is for pool.resolver k8s; with dns write pool.hostname" -}}
{{- end -}}
{{- if not (or .Values.collectors.enabled $pool.hostname $pool.service .Values.config.pools) -}}
{{- fail "without collectors of this release (collectors.enabled: false) write the backends: pool.hostname, pool.service or config.pools" -}}
{{- end -}}
{{- if and .Values.tls.receiver.clientCertificates (not .Values.tls.receiver.secretName) -}}
{{- fail "tls.receiver.clientCertificates needs tls.receiver.secretName; without it clients send in plaintext" -}}
{{- end -}}
{{- end }}

{{- /* Spanring's configuration: generated from the values, with `config` merged into it. */ -}}
{{- define "spanring.config" -}}
{{- $sidecar := eq .Values.mode "sidecar" -}}
{{- $grpc := dict "endpoint" (ternary "127.0.0.1:4317" "0.0.0.0:4317" $sidecar) -}}
{{- $http := dict "endpoint" (ternary "127.0.0.1:4318" "0.0.0.0:4318" $sidecar) -}}
{{- with .Values.tls.receiver -}}
{{- if .secretName -}}
{{- $tls := dict "cert_file" "/etc/spanring-tls/receiver/tls.crt" "key_file" "/etc/spanring-tls/receiver/tls.key" -}}
{{- if .clientCertificates }}{{ $_ := set $tls "client_ca_file" "/etc/spanring-tls/receiver/ca.crt" }}{{ end -}}
{{- $_ := set $grpc "tls" $tls -}}
{{- $_ := set $http "tls" $tls -}}
{{- end -}}
{{- end -}}
{{- $resolver := dict "dns" (dict "hostname" (include "spanring.poolHostname" .) "port" (int (include "spanring.poolPort" .))) -}}
{{- if eq .Values.pool.resolver "k8s" -}}
{{- $resolver = dict "k8s" (dict "service" (include "spanring.poolService" .) "ports" (list (int (include "spanring.poolPort" .)))) -}}
{{- end -}}
{{- $pool := dict "resolver" $resolver "compression" .Values.pool.compression -}}
{{- with .Values.pool.protocol }}{{ $_ := set $pool "protocol" . }}{{ end -}}
{{- with .Values.tls.pool -}}
{{- if .enabled -}}
{{- $tls := dict "insecure" false -}}
{{- if .secretName -}}
{{- $_ := set $tls "ca_file" "/etc/spanring-tls/pool/ca.crt" -}}
{{- if .clientCertificate -}}
{{- $_ := set $tls "cert_file" "/etc/spanring-tls/pool/tls.crt" -}}
{{- $_ := set $tls "key_file" "/etc/spanring-tls/pool/tls.key" -}}
{{- end -}}
{{- end -}}
{{- if .serverName }}{{ $_ := set $tls "server_name_override" .serverName }}{{ end -}}
{{- $_ := set $pool "tls" $tls -}}
{{- end -}}
{{- end -}}
{{- $route := dict "signals" (list "traces") "routing_key" "trace_id" "pool" "tail" -}}
{{- $shutdown := dict "delay" (printf "%ds" (int .Values.shutdown.delaySeconds)) "timeout" (printf "%ds" (int .Values.shutdown.timeoutSeconds)) -}}
{{- $protocols := dict "grpc" $grpc -}}
{{- if .Values.otlpHttp.enabled }}{{ $_ := set $protocols "http" $http }}{{ end -}}
{{- $config := dict "receivers" (dict "otlp" (dict "protocols" $protocols)) "pools" (dict "tail" $pool) "routes" (list $route) "admin" (dict "endpoint" "0.0.0.0:8888") "health_check" (dict "endpoint" "0.0.0.0:13133") "shutdown" $shutdown -}}
{{ mustMergeOverwrite $config (deepCopy .Values.config) | toYaml }}
{{- end }}

{{- /* Spanring's container; the same in all modes. */ -}}
{{- define "spanring.container" -}}
name: spanring
image: {{ include "spanring.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [run, --config, /etc/spanring/spanring.yaml{{ with .Values.watchConfig }}, --watch-config={{ . }}{{ end }}]
{{- with .Values.env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - { name: otlp-grpc, containerPort: 4317, protocol: TCP{{ if and (eq .Values.mode "daemonset") .Values.daemonset.hostPort }}, hostPort: 4317{{ end }} }
  {{- if .Values.otlpHttp.enabled }}
  - { name: otlp-http, containerPort: 4318, protocol: TCP{{ if and (eq .Values.mode "daemonset") .Values.daemonset.hostPort }}, hostPort: 4318{{ end }} }
  {{- end }}
  - { name: admin, containerPort: 8888, protocol: TCP }
  - { name: health, containerPort: 13133, protocol: TCP }
# Ready once ports are bound and backends are known, until it drains. The backends' health does not count.
startupProbe:
  httpGet: { path: /livez, port: health }
  periodSeconds: 1
  failureThreshold: 30
readinessProbe:
  httpGet: { path: /readyz, port: health }
  periodSeconds: 5
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  httpGet: { path: /livez, port: health }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
lifecycle:
  preStop:
    sleep: { seconds: {{ int .Values.shutdown.preStopSeconds }} }
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- include "spanring.containerSecurity" . | nindent 2 }}
volumeMounts:
  # Mount directories: a single file (subPath) would not be updated.
  - { name: config, mountPath: /etc/spanring, readOnly: true }
  {{- if .Values.tls.receiver.secretName }}
  - { name: tls-receiver, mountPath: /etc/spanring-tls/receiver, readOnly: true }
  {{- end }}
  {{- if and .Values.tls.pool.enabled .Values.tls.pool.secretName }}
  - { name: tls-pool, mountPath: /etc/spanring-tls/pool, readOnly: true }
  {{- end }}
{{- end }}

{{- define "spanring.volumes" -}}
- name: config
  configMap: { name: {{ include "spanring.fullname" . }} }
{{- if .Values.tls.receiver.secretName }}
- name: tls-receiver
  secret: { secretName: {{ .Values.tls.receiver.secretName }}, defaultMode: 0440 }
{{- end }}
{{- if and .Values.tls.pool.enabled .Values.tls.pool.secretName }}
- name: tls-pool
  secret: { secretName: {{ .Values.tls.pool.secretName }}, defaultMode: 0440 }
{{- end }}
{{- end }}

{{- /* Metadata of a pod, and its spec without the containers. */ -}}
{{- define "spanring.podMeta" -}}
labels:
  {{- include "spanring.labels" . | nindent 2 }}
  {{- with .Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if or .Values.podAnnotations (not .Values.watchConfig) }}
annotations:
  {{- if not .Values.watchConfig }}
  # A changed file causes a rollout.
  checksum/config: {{ include "spanring.config" . | sha256sum }}
  {{- end }}
  {{- with .Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "spanring.podSpec" -}}
serviceAccountName: {{ include "spanring.serviceAccountName" . }}
automountServiceAccountToken: {{ eq .Values.pool.resolver "k8s" }}
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
# preStopSeconds + delaySeconds + timeoutSeconds + marginSeconds
terminationGracePeriodSeconds: {{ with .Values.shutdown }}{{ add .preStopSeconds .delaySeconds .timeoutSeconds .marginSeconds }}{{ end }}
securityContext:
  {{- include "spanring.podSecurity" . | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  {{- include "spanring.volumes" . | nindent 2 }}
{{- end }}
