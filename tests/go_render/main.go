// Renders Go templates as Ollama does: reads [{"template", "messages"}] and writes the texts.
//
// The values and the joining of messages with the same role follow template.go of
// https://github.com/ollama/ollama.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type Request struct {
	Template string    `json:"template"`
	Messages []Message `json:"messages"`
}

func collate(messages []Message) (string, []*Message) {
	var system []string
	var joined []*Message
	for i := range messages {
		message := messages[i]
		if message.Role == "system" {
			system = append(system, message.Content)
		}
		if len(joined) > 0 && joined[len(joined)-1].Role == message.Role {
			if message.Content != "" {
				joined[len(joined)-1].Content += "\n\n" + message.Content
			}
		} else {
			joined = append(joined, &message)
		}
	}
	return strings.Join(system, "\n\n"), joined
}

func main() {
	var requests []Request
	if err := json.NewDecoder(os.Stdin).Decode(&requests); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, request := range requests {
		system, messages := collate(request.Messages)
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(request.Template))
		var text strings.Builder
		values := map[string]any{"System": system, "Messages": messages, "Response": ""}
		if err := parsed.Execute(&text, values); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		panic(err)
	}
}
