package fleet

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// rabbit is the engine of RabbitMQ: a fanout exchange with the fleet's name, and a queue for each connected instance.
type rabbit struct {
	url, exchange string
	out           atomic.Pointer[amqp.Channel] // to publish by; nil: there is no connection
}

const (
	rabbitDial      = 3 * time.Second
	rabbitHeartbeat = 5 * time.Second
	// rabbitAhead is how many messages an instance has from its queue that it has not dealt with.
	rabbitAhead = 64
	// rabbitQueue bounds the queue of an instance that does not keep up, in bytes. The oldest are lost, which their numbers show.
	rabbitQueue = 256 << 20
)

func newRabbit(text, exchange string) (*rabbit, error) {
	if _, err := amqp.ParseURI(text); err != nil {
		return nil, errors.New("it is no URL of RabbitMQ")
	}
	return &rabbit{url: text, exchange: exchange}, nil
}

func (r *rabbit) listen(ctx context.Context, up func(), receive func([]byte)) error {
	conn, err := amqp.DialConfig(r.url, amqp.Config{Heartbeat: rabbitHeartbeat, Locale: "en_US", Dial: amqp.DefaultDial(rabbitDial)})
	if err != nil {
		return err
	}
	defer conn.CloseDeadline(time.Now().Add(time.Second))
	in, err := conn.Channel()
	if err != nil {
		return err
	}
	deliveries, err := r.consume(in)
	if err != nil {
		return err
	}
	out, err := conn.Channel()
	if err == nil {
		err = out.Confirm(false)
	}
	if err != nil {
		return err
	}
	lost := out.NotifyClose(make(chan *amqp.Error, 1))
	r.out.Store(out)
	defer r.out.Store(nil)
	up()
	for {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return errors.New("the connection has ended")
			}
			receive(d.Body)
			if err := d.Ack(false); err != nil {
				return err
			}
		case err := <-lost:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// consume makes the queue of this instance, which is gone with its connection.
func (r *rabbit) consume(in *amqp.Channel) (<-chan amqp.Delivery, error) {
	if err := in.ExchangeDeclare(r.exchange, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
		return nil, err
	}
	queue, err := in.QueueDeclare("", false, true, true, false, amqp.Table{"x-max-length-bytes": int64(rabbitQueue), "x-overflow": "drop-head"})
	if err == nil {
		err = in.QueueBind(queue.Name, "", r.exchange, false, nil)
	}
	if err == nil {
		err = in.Qos(rabbitAhead, 0, false)
	}
	if err != nil {
		return nil, err
	}
	return in.Consume(queue.Name, "", false, true, false, false, nil)
}

func (r *rabbit) publish(ctx context.Context, text []byte) error {
	out := r.out.Load()
	if out == nil {
		return ErrBusAway
	}
	confirmation, err := out.PublishWithDeferredConfirmWithContext(ctx, r.exchange, "", false, false, amqp.Publishing{ContentType: "application/json", Body: text})
	if err != nil {
		return err
	}
	if taken, err := confirmation.WaitContext(ctx); err != nil || !taken {
		return ErrBusAway
	}
	return nil
}

func (r *rabbit) close() {}
