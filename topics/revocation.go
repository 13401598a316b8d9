package topics

// Revocation says that tokens of a user hold no more.
type Revocation struct {
	// TokenID is the one (claim jti); empty: all that were issued until now.
	TokenID string
}

// TypeSessionRevoked is a Revocation.
const TypeSessionRevoked = "session.revoked"

var revokedKind = Kind{
	Type: TypeSessionRevoked, Doc: "tokens of a user hold no more",
	In: []In{{Topic: Control, Keys: []AudienceKind{User}}},
	Fields: []Field{
		{Name: "tokenId", Chars: Bounds{1, 256}, Doc: "the token's claim jti; left out: all that were issued until now"},
		timestamp},
	Sender: byAnyUser, // an administrator's token; whose, the record does not say
}

// ReadRevocation reads a valid event.
func ReadRevocation(e *Event) Revocation { return Revocation{TokenID: e.body.Text("tokenId")} }

// Event makes the event that an administrator has revoked tokens of a user.
func (r Revocation) Event(user, admin string) *Event {
	return New(Control, UserKey(user), Meta{Type: TypeSessionRevoked, Source: SourceOf(admin), ID: NewID()},
		Fields("tokenId", orNil(nonZero(r.TokenID))))
}
