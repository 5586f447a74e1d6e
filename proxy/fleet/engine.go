package fleet

import (
	"context"
	"errors"
	"net/url"
)

// engine carries messages to all instances, those of this one back to it.
type engine interface {
	// publish returns when the engine has a message. One call runs at a time. An error means that it will have it no more, or that this
	// is not known; it is ErrTooLarge where the engine never takes a message that large.
	publish(ctx context.Context, text []byte) error
	// listen calls receive with all that is published, in order, until the connection fails. It calls up when nothing will be missed from
	// there on.
	listen(ctx context.Context, up func(), receive func(text []byte)) error
	close()
}

// newEngine returns what BUS_URL names; nil where it is empty. Its errors quote nothing of the URL, which may hold a password.
func newEngine(text, fleet string, maxMessage int) (engine, error) {
	if text == "" {
		return nil, nil
	}
	target, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("it is no URL")
	}
	switch target.Scheme {
	case "amqp", "amqps":
		return newRabbit(text, fleet)
	case "kafka":
		return newKafka(target, maxMessage)
	}
	return nil, errors.New("its scheme is of no engine")
}

// pubSub is the engine of a fleet that has no other: the channel {F}:bus of its Redis.
type pubSub Fleet

func (p *pubSub) publish(ctx context.Context, text []byte) error {
	f := (*Fleet)(p)
	return f.redis.Publish(ctx, f.key("bus"), text).Err()
}

func (p *pubSub) listen(ctx context.Context, up func(), receive func([]byte)) error {
	f := (*Fleet)(p)
	return f.subscribe(ctx, up, func(_ string, text []byte) { receive(text) }, f.key("bus"))
}

func (p *pubSub) close() {}
