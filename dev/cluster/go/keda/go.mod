// KEDA's definitions for the tests; nothing of it is built.
module dedicate.dev/dev/cluster/keda

go 1.25.0

require github.com/kedacore/keda/v2 v2.21.0
