package fleet

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"portcullis/proxy/rabbittest"
	"portcullis/ratelimit"
)

func checked(t *testing.T, redisURL, busURL string) Found {
	t.Helper()
	found, err := Check(t.Context(), Config{RedisURL: redisURL, BusURL: busURL, Name: "test", Instance: "check", Timeout: testPatience})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestCheck(t *testing.T) {
	s := newServer(t)
	found := checked(t, s.URL(), "")
	if found.Err != nil || found.Redis != s.Addr || found.Version == "" || found.Took <= 0 || found.Instances != 0 || found.Evicts != "" || found.Bus != "" || found.BusErr != nil {
		t.Errorf("got %+v", found)
	}
	if n := s.DBSize(t.Context()).Val(); n != 0 {
		t.Errorf("%d keys are left", n)
	}
	s.newInstance("a", ratelimit.Config{})
	before := s.Info(t.Context(), "keyspace").Val()
	if found := checked(t, s.URL(), ""); found.Err != nil || found.Instances != 1 {
		t.Errorf("with an instance: %+v", found)
	}
	if after := s.Info(t.Context(), "keyspace").Val(); after != before {
		t.Errorf("keys before %s, after %s", before, after)
	}
}

func TestCheckOfRedisThatIsUnfit(t *testing.T) {
	ctx := context.Background()
	for _, test := range []struct {
		name  string
		setUp func(t *testing.T, s *server) (url string)
		wrong []string // parts of the error; none: there is none
	}{
		{"a password is missing", func(_ *testing.T, s *server) string {
			s.ConfigSet(ctx, "requirepass", "hunter2")
			return s.URL()
		}, []string{"NOAUTH"}},
		{"the password is wrong", func(_ *testing.T, s *server) string {
			s.ConfigSet(ctx, "requirepass", "hunter2")
			return "redis://:hunter3@" + s.Addr
		}, []string{"WRONGPASS"}},
		{"a user who may not write", func(_ *testing.T, s *server) string {
			s.Do(ctx, "ACL", "SETUSER", "gate", "on", ">hunter2", "~*", "&*", "+@all", "-zadd", "-set")
			return "redis://gate:hunter2@" + s.Addr
		}, []string{"it refuses SET, ZADD: "}},
		{"a user who has other keys", func(_ *testing.T, s *server) string {
			s.Do(ctx, "ACL", "SETUSER", "gate", "on", ">hunter2", "~{other}:*", "&*", "+@all")
			return "redis://gate:hunter2@" + s.Addr
		}, []string{"NOPERM"}},
		{"a user who may not publish", func(_ *testing.T, s *server) string {
			s.Do(ctx, "ACL", "SETUSER", "gate", "on", ">hunter2", "~*", "resetchannels", "+@all")
			return "redis://gate:hunter2@" + s.Addr
		}, []string{"NOPERM"}},
		{"a user who may do what is needed", func(_ *testing.T, s *server) string {
			s.Do(ctx, "ACL", "SETUSER", "gate", "on", ">hunter2", "~{test}:*", "&{test}:*", "+@all", "-@dangerous", "-@admin")
			return "redis://gate:hunter2@" + s.Addr
		}, nil},
		{"a replica", func(_ *testing.T, s *server) string {
			s.Do(ctx, "REPLICAOF", "127.0.0.1", "1")
			return s.URL()
		}, []string{"READONLY"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newServer(t)
			found := checked(t, test.setUp(t, s), "")
			if (found.Err != nil) != (test.wrong != nil) {
				t.Fatalf("got %+v", found)
			}
			for _, part := range test.wrong {
				if text := found.Err.Error(); !strings.Contains(text, part) || strings.Contains(text, "hunter") {
					t.Errorf("got %s, want %s", text, part)
				}
			}
		})
	}
	t.Run("it forgets", func(t *testing.T) {
		s := newServer(t)
		s.ConfigSet(ctx, "maxmemory", "100mb")
		s.ConfigSet(ctx, "maxmemory-policy", "allkeys-lru")
		if found := checked(t, s.URL(), ""); found.Err != nil || found.Evicts != "allkeys-lru" {
			t.Errorf("got %+v", found)
		}
	})
	t.Run("a cluster", func(t *testing.T) {
		s := newServer(t)
		s.Kill()
		s.Cluster()
		if found := checked(t, s.URL()+"?addr="+s.Addr, ""); found.Err != nil || found.Redis != s.Addr {
			t.Errorf("got %+v", found)
		}
	})
}

func TestCheckOfWhoDoesNotAnswer(t *testing.T) {
	s := newServer(t)
	s.Kill()
	if found := checked(t, s.URL(), ""); found.Err == nil || found.Redis != s.Addr {
		t.Errorf("got %+v", found)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if found := checked(t, "redis://"+silent.Addr().String(), "kafka://"+silent.Addr().String()+"/bus"); found.Err == nil || found.BusErr == nil {
		t.Errorf("got %+v", found)
	}
}

func TestCheckOfTheBus(t *testing.T) {
	s := newServer(t)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "bus"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	kafka := strings.Join(cluster.ListenAddrs(), ",")
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go func() {
		for {
			c, err := other.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			c.Close()
		}
	}()
	for _, test := range []struct {
		name, url, bus string
		well           bool
	}{
		{"Kafka", "kafka://" + kafka + "/bus", kafka, true},
		{"no topic", "kafka://" + kafka + "/other", kafka, false},
		{"no RabbitMQ", "amqp://gate:hunter2@" + other.Addr().String(), other.Addr().String(), false},
		{"RabbitMQ that is gone", "amqp://gate:hunter2@127.0.0.1:1", "127.0.0.1:1", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			found := checked(t, s.URL(), test.url)
			if found.Err != nil || found.Bus != test.bus || (found.BusErr == nil) != test.well {
				t.Errorf("got %+v", found)
			}
			if found.BusErr != nil && strings.Contains(found.BusErr.Error(), "hunter2") {
				t.Errorf("a password is shown: %v", found.BusErr)
			}
		})
	}
}

func TestCheckOfRabbitMQ(t *testing.T) {
	r := rabbittest.Start(t)
	s := newServer(t)
	if found := checked(t, s.URL(), r.URL()); found.BusErr != nil || found.Bus != "127.0.0.1:"+r.Port {
		t.Errorf("got %+v", found)
	}
	if found := checked(t, s.URL(), "amqp://gate:hunter2@127.0.0.1:"+r.Port); found.BusErr == nil || strings.Contains(found.BusErr.Error(), "hunter2") {
		t.Errorf("a wrong password: %+v", found)
	}
}

func TestCheckOfMistakes(t *testing.T) {
	if _, err := Check(t.Context(), Config{RedisURL: "http://redis", Name: "test", Timeout: testPatience}); err == nil {
		t.Error("a URL that is none of Redis is no mistake")
	}
	if found, err := Check(t.Context(), Config{}); err != nil || found != (Found{}) {
		t.Errorf("without Redis: %+v, %v", found, err)
	}
}
