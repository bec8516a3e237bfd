// Command network-policies enforces the NetworkPolicies of one node by iptables and ipset: kube-router's network policy
// controller and nothing else of it. Routing, BGP and the service proxy, which the stock program links, are not in it.
package main

import (
	"context"
	"flag"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

func main() {
	config := options.NewKubeRouterConfig()
	config.EnableIPv4 = true
	config.IPTablesSyncPeriod = time.Minute
	services := flag.String("service-cidr", "", "addresses of Services")
	healthy := flag.String("healthz", "", "address of /healthz")
	flag.StringVar(&config.Kubeconfig, "kubeconfig", "", "how to reach the API server")
	flag.StringVar(&config.HostnameOverride, "node", "", "name of the node")
	flag.Parse()
	config.ClusterIPCIDRs = []string{*services}

	stop, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(stop, config, *healthy); err != nil {
		klog.Fatal(err)
	}
}

func run(stop context.Context, config *options.KubeRouterConfig, healthy string) error {
	access, err := clientcmd.BuildConfigFromFlags("", config.Kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(access)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods := factory.Core().V1().Pods().Informer()
	namespaces := factory.Core().V1().Namespaces().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()
	commands, sets, err := netpol.NewIPTablesHandlers(config)
	if err != nil {
		return err
	}
	var lock sync.Mutex
	controller, err := netpol.NewNetworkPolicyController(client, config, pods, policies, namespaces, &lock, commands, sets)
	if err != nil {
		return err
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		pods:       controller.PodEventHandler,
		namespaces: controller.NamespaceEventHandler,
		policies:   controller.NetworkPolicyEventHandler,
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	factory.Start(stop.Done())
	factory.WaitForCacheSync(stop.Done())

	beats := make(chan *healthcheck.ControllerHeartbeat, 10)
	var running sync.WaitGroup
	running.Add(1)
	go controller.Run(beats, stop.Done(), &running)
	go serveAfterFirstSync(beats, healthy)
	running.Wait()
	return nil
}

// The controller sends a beat as each of its syncs begins; the first comes right after the chains have been made that
// everything else hangs in. Somebody has to receive them all.
func serveAfterFirstSync(beats <-chan *healthcheck.ControllerHeartbeat, address string) {
	<-beats
	go func() {
		for range beats {
		}
	}()
	http.HandleFunc("/healthz", func(answer http.ResponseWriter, _ *http.Request) { answer.WriteHeader(http.StatusOK) })
	server := http.Server{Addr: address, ReadHeaderTimeout: 5 * time.Second}
	klog.Fatal(server.ListenAndServe())
}
