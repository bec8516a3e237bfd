curl -sS "$OPENAI_BASE_URL/completions" \
  -H "Authorization: Bearer $OPENAI_API_KEY" -H 'Content-Type: application/json' \
  -d '{"model": "'"$MODEL"'", "prompt": "The capital of Japan is", "max_tokens": 8}'
