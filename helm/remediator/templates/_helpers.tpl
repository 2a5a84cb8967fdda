{{- define "remediator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "remediator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "remediator.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "remediator.selector" -}}
app.kubernetes.io/name: {{ include "remediator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "remediator.labels" -}}
{{ include "remediator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "remediator.account" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "remediator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Where a pack's directory is in the Pod. */}}
{{- define "remediator.packPath" -}}
{{- if .pack.path -}}{{ .pack.path }}{{- else -}}/etc/remediator-rules/{{ .name }}{{- end -}}
{{- end -}}

{{/* Not empty when the state is in a database that several Pods can share. */}}
{{- define "remediator.shared" -}}
{{- if hasPrefix "postgres" (dig "store" "url" "" .Values.settings) -}}true{{- end -}}
{{- end -}}

{{/* Not empty when the state is on a volume. */}}
{{- define "remediator.volume" -}}
{{- if and .Values.persistence.enabled (not (include "remediator.shared" .)) -}}true{{- end -}}
{{- end -}}

{{/* Name of the Secret that the chart makes to sign sessions; empty when it makes none. One Pod by itself needs none. */}}
{{- define "remediator.sessionKey" -}}
{{- if and .Values.sessionKey.create (include "remediator.shared" .) (not (dig "ui" "session_key" nil .Values.settings)) (dig "ui" "enabled" true .Values.settings) -}}
{{- include "remediator.fullname" . }}-session-key
{{- end -}}
{{- end -}}

{{/* The whole of remediator.yaml. */}}
{{- define "remediator.settings" -}}
{{- $packs := dict -}}
{{- range $name, $pack := .Values.packs -}}
{{- $_ := set $packs $name (dict "path" (include "remediator.packPath" (dict "name" $name "pack" $pack)) "vars" (default dict $pack.vars)) -}}
{{- end -}}
{{- /* Requests under way get 20 s before the calls do. */ -}}
{{- $grace := dict "limits" (dict "shutdown_grace" (printf "%ds" (sub (int64 .Values.terminationGracePeriodSeconds) 30))) -}}
{{- toYaml (merge (dict "packs" $packs) .Values.settings $grace) -}}
{{- end -}}

{{/* What a reload does not apply: a change of it has to start the Pod anew. Everything else is picked up while it runs. */}}
{{- define "remediator.restart" -}}
{{- $limits := default dict .Values.settings.limits -}}
{{- dict "store" .Values.settings.store "listen" .Values.settings.listen "log" .Values.settings.log "actions_path" .Values.settings.actions_path "workers" $limits.workers "lease" $limits.lease "session_key" (dig "ui" "session_key" nil .Values.settings) | toJson | sha256sum -}}
{{- end -}}

{{- define "remediator.scheme" -}}
{{- if dig "listen" "tls" nil .Values.settings -}}https{{- else -}}http{{- end -}}
{{- end -}}

{{/* The Kubernetes rights of the chosen actions and checks, each resource once: GROUP/RESOURCE to verbs, as JSON. `part`: namespaced or cluster. */}}
{{- define "remediator.rights" -}}
{{- $known := .root.Files.Get "files/permissions.yaml" | fromYaml -}}
{{- $rights := dict -}}
{{- range $name := .root.Values.rbac.actions -}}
{{- if not (has $name $known.names) -}}
{{- fail (printf "rbac.actions: there is no action or check %q; `remediator actions` and `remediator checks` list them" $name) -}}
{{- end -}}
{{- range $resource, $verbs := default dict (get (get $known $.part) $name) -}}
{{- $_ := set $rights $resource (concat (default list (get $rights $resource)) $verbs | uniq | sortAlpha) -}}
{{- end -}}
{{- end -}}
{{- toJson $rights -}}
{{- end -}}

{{- define "remediator.rules" -}}
{{- range $resource, $verbs := include "remediator.rights" . | fromJson }}
{{- $parts := splitn "/" 2 $resource }}
- apiGroups: [{{ $parts._0 | quote }}]
  resources: [{{ $parts._1 | quote }}]
  verbs: {{ toJson $verbs }}
{{- end }}
{{- end -}}

{{/* Not empty when the Pod needs a token of its service account. */}}
{{- define "remediator.usesCluster" -}}
{{- $rights := printf "%s%s" (include "remediator.rules" (dict "root" . "part" "namespaced")) (include "remediator.rules" (dict "root" . "part" "cluster")) -}}
{{- if or .Values.rbac.secrets (trim $rights) -}}true{{- end -}}
{{- if not .Values.rbac.create -}}
{{- range .Values.settings.connections -}}{{- if .in_cluster -}}true{{- end -}}{{- end -}}
{{- end -}}
{{- end -}}
