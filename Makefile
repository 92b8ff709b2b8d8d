# SPDX-License-Identifier: Apache-2.0
# What people type. Building, testing and the demo need Go, make and root; only generate and check
# need clang, which check installs.

GO ?= go
CLANG_VERSION ?= 19
C_FILES = $(wildcard bpf/*/*.[ch] internal/*/*.[ch] tests/*/*.[ch])
# How long each test of tests/faults makes faults.
DURATION ?= 10m
# Another build of the hooks that is measured beside this one, such as the former release's: an object file, from
# git show COMMIT:bpf/sock/revsk_bpfel.o.
FORMER ?=
BENCH_FORMER = $(if $(FORMER),-objects former=$(FORMER))
# A compiled object of another agent's programs, on a node its bpf_sock.o, and the tests that those can pass.
OBJECT ?=
# Our own programs under the reference's names.
OWN_OBJECT = internal/reference/reference_bpfel.o
REFERENCE_TESTS = ^Test(Branch([A-Z]+[0-9]|Difference[A-Z])|Connect|Sendmsg|Recvmsg|Getpeername|Reconnect|Disconnect|FormerConnection|$\
	StaleTuples|LegacyMode|Other|IPv4AddressOnAnIPv6Socket|UDPLite|TakeoverWithoutGap|UpgradeAndBack)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/revsk
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/revsk ./cmd/revsk

.PHONY: demo
demo: build ## Show what leaks with the hash, not with storage (root)
	./bin/revsk selftest

.PHONY: demo-agent
demo-agent: ## Show what the agent does for an nginx whose DNS server goes, and what happens without (root)
	@command -v nginx >/dev/null || { apt-get update -q && apt-get install -y -q nginx-light; }
	$(GO) run ./tests/demo

.PHONY: test
test: ## Run all tests on the running kernel (root)
	@# Those that take longest begin first.
	$(GO) test -count=1 -timeout 45m ./tests/kernel ./loader ./...

.PHONY: test-faults
test-faults: ## Make faults and load for long: [DURATION=10m] (root)
	$(GO) test -count=1 -timeout 24h -v ./tests/faults -faults.duration=$(DURATION) -faults.document=$(abspath docs/reliability.md)
	$(GO) test -count=1 -timeout 24h ./tests/prog -run 'TestRandomSequence|TestArbitraryStorage' -random.calls=1000000 -arbitrary.runs=1000000

# How many random calls the programs get on this machine, under sanitizers.
CALLS ?= 1000000

.PHONY: test-host
test-host: clang ## Run bpf/lib on this machine under sanitizers: [CALLS=N]
	mkdir -p bin
	clang-$(CLANG_VERSION) -O1 -g -w -fsanitize=address,undefined -fno-sanitize=bounds -fno-sanitize-recover=all \
		-Itests/host -Ibpf/lib -o bin/host tests/host/host.c
	./bin/host $(CALLS) $$$$

.PHONY: test-rules
test-rules: clang ## Break each rule: its test must fail: [RUN=regexp] (root)
	$(GO) run ./tests/rules -run "$(RUN)"

.PHONY: analyze
analyze: clang ## Search the BPF programs with the static analyzer of clang
	@for file in bpf/sock/*.c bpf/iter/*.c; do \
		clang-$(CLANG_VERSION) --analyze -Xclang -analyzer-werror -Xclang -analyzer-output=text -target bpf -mcpu=v3 -Ibpf/lib $$file || exit 1; \
	done
	@# In the iterators a value loses bits only where a cast says so. Not in bpf/lib, whose functions take and return integers
	@# that are wider than the values in them.
	@for file in bpf/iter/*.c; do \
		clang-$(CLANG_VERSION) -fsyntax-only -Wconversion -Wno-sign-conversion -Werror -target bpf -mcpu=v3 -isystem bpf/lib $$file || exit 1; \
	done

# Packages that the race detector runs over.
RACE ?= $(shell $(GO) list ./... | grep -v /tests/)

.PHONY: test-race
test-race: ## Run tests with the race detector, compare docs/coverage.md: [RACE=./...]
	@command -v gcc >/dev/null || { apt-get update -q && apt-get install -y -q gcc libc6-dev; }
	mkdir -p bin
	CGO_ENABLED=1 $(GO) test -race -coverprofile=bin/coverage.out -count=1 -timeout 60m $(RACE)
	$(GO) run ./tests/coverage $(COVERAGE) bin/coverage.out docs/coverage.md

.PHONY: coverage
coverage: ## Write docs/coverage.md: [RACE=./...] (root)
	$(MAKE) test-race COVERAGE=-write RACE="$(RACE)"

.PHONY: test-reference
test-reference: ## Test another agent's programs: OBJECT=bpf_sock.o (root)
	@test -n "$(OBJECT)" || { echo "make test-reference OBJECT=FILE: FILE is a node's bpf_sock.o, or $(OWN_OBJECT)"; exit 2; }
	$(GO) test -count=1 -timeout 30m ./tests/kernel -run '$(REFERENCE_TESTS)' -reference $(abspath $(OBJECT))

.PHONY: test-stay
DURATION ?= 10m
test-stay: ## Test revsk beside a busy agent: [DURATION=10m] (root)
	$(GO) test -count=1 -timeout 24h -v ./tests/kernel -run TestStayBesideAnotherAgent -stay.duration $(DURATION)

.PHONY: test-week
test-week: ## Test a week of a node's life with revsk agent: [DURATION=10m] (root)
	$(GO) test -count=1 -timeout 24h -v ./agent -run TestWeekOfANode -agent.week $(DURATION)

.PHONY: test-agent
test-agent: clang ## Test revsk beside the Go code of Cilium's agent (root)
	cd tests/agent && $(GO) test -count=1 -timeout 20m . -v && $(GO) test -count=1 -timeout 20m -modfile=cilium-1.19.mod -tags cilium119 . -v

.PHONY: test-clients
test-clients: build ## Test real programs whose backend goes (root)
	@command -v node javac python3 haproxy nginx redis-server ip >/dev/null || { apt-get update -q && apt-get install -y -q --no-install-recommends \
		nodejs default-jdk-headless python3 haproxy nginx redis-server iproute2; }
	cd tests/clients && $(GO) test -count=1 -timeout 10m -v .

# Where the rendered charts are kept for a moment.
RENDERED ?= $(CURDIR)/bin/charts

.PHONY: test-deploy
test-deploy: ## Test the chart, the dashboard and the alerts with Helm, the types of Kubernetes and a Prometheus (root)
	@for p in prometheus buildah podman runc; do command -v $$p >/dev/null || \
		{ apt-get update -q && apt-get install -y -q --no-install-recommends prometheus buildah podman runc; break; }; done
	rm -rf $(RENDERED) && mkdir -p $(RENDERED)
	cd deploy/tests && $(GO) test -count=1 -timeout 20m . -v -rendered $(RENDERED)
	cd deploy/tests/kubernetes && $(GO) test -count=1 . -rendered $(RENDERED) && $(GO) test -count=1 -modfile=oldest.mod . -rendered $(RENDERED)

.PHONY: image
image: build ## Build the image from scratch with buildah
	buildah build -f deploy/image/Containerfile -t revsk bin

.PHONY: test-vm
test-vm: ## Run tests on other kernels: [KERNELS="6.1"] [RUN=TestX]
	$(GO) run ./tests/vm $(if $(KERNELS),-kernels "$(KERNELS)") $(if $(VARIANTS),-variants "$(VARIANTS)") $(if $(RUN),-run "$(RUN)") \
		$(if $(PKGS),-pkgs "$(PKGS)") $(if $(DOCS),-docs $(DOCS)) $(if $(PARALLEL),-parallel $(PARALLEL))

.PHONY: bench
bench: ## Measure the hooks into docs/: [OBJECT=bpf_sock.o] (root)
	$(GO) run ./tests/bench $(if $(OBJECT),-reference $(OBJECT)) $(BENCH_FORMER) -json docs/benchmarks.json -tables docs/benchmarks-results.md

.PHONY: bench-plots
bench-plots: ## Draw docs/benchmarks.json
	cd tests/bench/plots && $(GO) run . ../../../docs/benchmarks.json ../../../docs

.PHONY: bench-check
bench-check: ## Fail on figures that miss a goal: [FORMER=FILE.o] (root)
	$(GO) run ./tests/bench -rounds 40 -sections hooks,peers $(BENCH_FORMER) -check

.PHONY: generate
generate: ## Compile the BPF programs (clang-19), record their sizes
	$(GO) generate ./...
	$(GO) run ./bpf/progsize -json docs/verifier.json

.PHONY: lint
lint: ## Check formatting, go vet and staticcheck
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	clang-format-$(CLANG_VERSION) --dry-run --Werror $(C_FILES)
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...

.PHONY: check
check: clang lint generate ## lint, then compile: committed objects must not change
	git diff --exit-code -- '*_bpfe[bl].*'

.PHONY: clang
clang:
	@command -v clang-$(CLANG_VERSION) clang-format-$(CLANG_VERSION) llvm-strip-$(CLANG_VERSION) >/dev/null && test -f /usr/include/bpf/bpf_helpers.h || \
		{ apt-get update -q && apt-get install -y -q clang-$(CLANG_VERSION) clang-format-$(CLANG_VERSION) llvm-$(CLANG_VERSION) libbpf-dev; }

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin
