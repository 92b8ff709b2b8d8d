// SPDX-License-Identifier: Apache-2.0

// Package kubernetes decodes the objects of the chart strictly into the types of Kubernetes, of the newest and, with
// -modfile=oldest.mod, the oldest release that the chart is for. Objects of the Prometheus operator are left out.
package kubernetes

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

var rendered = flag.String("rendered", "", "the directory with the rendered charts")

func TestObjectsAreThoseOfKubernetes(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(*rendered, "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files, "-rendered")
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		kinds := make(map[string]int)
		for _, object := range strings.Split(string(text), "\n---\n") {
			var kind metav1.TypeMeta
			require.NoError(t, yaml.Unmarshal([]byte(object), &kind), file)
			kinds[kind.Kind]++
			switch kind.Kind {
			case "DaemonSet":
				var d appsv1.DaemonSet
				require.NoError(t, yaml.UnmarshalStrict([]byte(object), &d), file)
				require.Equal(t, d.Spec.Selector.MatchLabels["app.kubernetes.io/instance"], d.Spec.Template.Labels["app.kubernetes.io/instance"])
				require.NotNil(t, d.Spec.Template.Spec.Containers[0].ReadinessProbe)
				require.True(t, d.Spec.Template.Spec.HostPID)
			case "ConfigMap":
				require.NoError(t, yaml.UnmarshalStrict([]byte(object), new(corev1.ConfigMap)), file)
			case "ServiceAccount":
				require.NoError(t, yaml.UnmarshalStrict([]byte(object), new(corev1.ServiceAccount)), file)
			case "PodMonitor", "PrometheusRule":
			default:
				require.Fail(t, "another kind of object", "%s: %q", file, kind.Kind)
			}
		}
		for _, kind := range []string{"DaemonSet", "ConfigMap", "ServiceAccount"} {
			require.Equal(t, 1, kinds[kind], "%s: %s", file, kind)
		}
	}
}
