package fleet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

// kafka is the engine of Kafka: the first partition of a topic, which every instance reads from its end on, in no consumer group.
type kafka struct {
	client *kgo.Client
	topic  string
}

// newKafka reads kafka://HOST:PORT,HOST:PORT/TOPIC. USER:PASSWORD@ authenticates by SASL PLAIN; ?tls=true is for TLS.
func newKafka(target *url.URL, maxMessage int) (*kafka, error) {
	topic := strings.Trim(target.Path, "/")
	if target.Host == "" || topic == "" || strings.Contains(topic, "/") {
		return nil, errors.New("it names no brokers, or no topic")
	}
	options := []kgo.Opt{
		kgo.SeedBrokers(strings.Split(target.Host, ",")...),
		kgo.ClientID("portcullis"),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
		kgo.RecordDeliveryTimeout(publishTime),
		kgo.ProducerBatchMaxBytes(int32(min(maxMessage+1<<10, 1<<30))), // the broker decides
		kgo.BrokerMaxWriteBytes(int32(min(2*maxMessage+100<<20, 1<<30))),
		kgo.FetchMaxWait(publishTime),
	}
	switch query := target.Query(); query.Encode() {
	case "":
	case "tls=true":
		options = append(options, kgo.DialTLSConfig(new(tls.Config)))
	default:
		return nil, errors.New("its query is not tls=true")
	}
	if user := target.User; user != nil {
		password, _ := user.Password()
		options = append(options, kgo.SASL(plain.Auth{User: user.Username(), Pass: password}.AsMechanism()))
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return nil, errors.New("it names no brokers")
	}
	return &kafka{client, topic}, nil
}

func (k *kafka) listen(ctx context.Context, up func(), receive func([]byte)) error {
	end, err := k.end(ctx)
	if err != nil {
		return err
	}
	k.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{k.topic: {0: kgo.NewOffset().At(end)}})
	defer k.client.PurgeTopicsFromConsuming(k.topic)
	up()
	for {
		fetched := k.client.PollFetches(ctx)
		if err := fetched.Err0(); err != nil {
			return err
		}
		for _, e := range fetched.Errors() {
			return fmt.Errorf("topic %s: %w", e.Topic, e.Err)
		}
		fetched.EachRecord(func(r *kgo.Record) { receive(r.Value) })
	}
}

// end is the offset of what is published next.
func (k *kafka) end(ctx context.Context) (int64, error) {
	r := kmsg.NewPtrListOffsetsRequest()
	r.ReplicaID = -1
	partition := kmsg.NewListOffsetsRequestTopicPartition()
	partition.Timestamp = -1 // the end
	topic := kmsg.NewListOffsetsRequestTopic()
	topic.Topic, topic.Partitions = k.topic, append(topic.Partitions, partition)
	r.Topics = append(r.Topics, topic)
	resp, err := r.RequestWith(ctx, k.client)
	if err != nil {
		return 0, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return 0, errors.New("the topic has no first partition")
	}
	p := resp.Topics[0].Partitions[0]
	return p.Offset, kerr.ErrorForCode(p.ErrorCode)
}

func (k *kafka) publish(ctx context.Context, text []byte) error {
	err := k.client.ProduceSync(ctx, &kgo.Record{Topic: k.topic, Value: text}).FirstErr()
	if errors.Is(err, kerr.MessageTooLarge) {
		return ErrTooLarge
	}
	return err
}

func (k *kafka) close() { k.client.Close() }
