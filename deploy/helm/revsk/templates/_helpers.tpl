{{- define "revsk.labels" -}}
app.kubernetes.io/name: revsk
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "revsk.selector" -}}
app.kubernetes.io/name: revsk
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "revsk.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}
