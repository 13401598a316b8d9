package inbox

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
)

// askedAtOnce bounds the users of one query for devices.
const askedAtOnce = 500

// Tokens finds the registered device tokens of users, by user: a query for many users, not one for each.
func (i *Inbox) Tokens(ctx context.Context, users []string) (map[string][]string, error) {
	tokens := make(map[string][]string)
	for some := range slices.Chunk(users, askedAtOnce) {
		args, marks := make([]any, len(some)), make([]string, len(some))
		for n, u := range some {
			args[n], marks[n] = u, fmt.Sprintf("$%d", n+1)
		}
		err := i.db.Query(ctx, func(rows *sql.Rows) error {
			var user, token string
			err := rows.Scan(&user, &token)
			tokens[user] = append(tokens[user], token)
			return err
		}, `SELECT user_id, token FROM registered_devices WHERE user_id IN (`+strings.Join(marks, ",")+`) ORDER BY token`, args...)
		if err != nil {
			return nil, wrap("list devices", err)
		}
	}
	return tokens, nil
}
